"""Accounts for everything that is carried along the tape, without waiting for the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.calling.reading import truth, uncaptured
from captum_transformer.errors import ConservationError
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value

Result = TypeVar("Result")
# The fraction of the sum of absolute values that may be rounding. Models compute some parts in
# single precision whatever their dtype is, and quotients magnify rounding; a wrong rule loses far
# more.
ROUNDING = 1e-4
# The same for a single operation.
ROUNDING_OF_OPERATION = 1e-3


def total(value: Value | None, carried: Tensor) -> Tensor:
    """Returns the sum for each sample, ``(samples,)``, or one sum if samples aren't known."""
    if value is None or value.samples is None:
        return carried.sum()
    return value.samples.total(carried)


def added_up(totals: Sequence[Tensor]) -> Tensor:
    """Returns the sum of several totals; some may be of all samples together."""
    by_sample = all(one.ndim for one in totals)
    first, *others = totals if by_sample else [one.sum() for one in totals]
    for other in others:
        first = first + other
    return first


class Taken(NamedTuple):
    """What an operation passes on to no operand, and why."""

    operation: Operation
    reason: Reason
    amount: Tensor


class Asked(Protocol):
    """Another condition that the device computes, so that the host doesn't wait twice.

    Attributes:
        what: what holds then, for messages.
    """

    what: str

    def holds(self) -> Tensor:
        """Returns whether the condition holds, as a tensor on the device."""

    def require(self) -> None:
        """Raises an error if the condition does not hold."""


class Ledger:
    """What a pass started with, what was taken, and where it ended.

    Attributes:
        reached: the wanted values that something that counts has reached, even if it is zero.
    """

    def __init__(self) -> None:
        self.reached: set[Value] = set()
        self.started: list[Tensor] = []
        self.taken: list[Taken] = []
        self.ended: list[tuple[Value, Tensor]] = []
        self._counted: list[Tensor] = []
        self._size: list[Tensor] = []
        self._compared: list[tuple[Operation, Tensor, Tensor, Tensor]] = []

    def start(self, seeds: Mapping[Value, Tensor]) -> None:
        """Records what a pass starts with."""
        self.started = [total(value, seed) for value, seed in seeds.items()]
        self._size = [torch.linalg.vector_norm(seed, 1) for seed in seeds.values()]

    def count(self, amount: Tensor, times: int) -> None:
        """Records an amount that started ``times`` times, or ended if ``times`` is negative."""
        if times:
            self._counted.append(amount if times == 1 else amount * times)

    def passed(
        self,
        operation: Operation,
        incoming: Sequence[Tensor | None],  # noqa: ARG002 - for those that look closer
        shares: Sequence[Tensor | None],
    ) -> None:
        """Records what an operation's rule declares as taken."""
        for reason, amount in getattr(shares, "taken", {}).items():
            self.taken.append(Taken(operation, reason, amount))

    def compare(self, operation: Operation, expected: Tensor, found: Tensor, size: Tensor) -> None:
        """Records two sums that must be equal, and the size of the terms that they sum."""
        self._compared.append((operation, expected, found, size))

    def left(self, operation: Operation, value: Value, share: Tensor) -> None:
        """Records a share of a value that leads to no wanted value."""
        self.taken.append(Taken(operation, Reason.ELSEWHERE, total(value, share)))

    def end(self, value: Value, arrived: Tensor) -> None:
        """Records what has arrived at a value from which it is carried no further."""
        self.ended.append((value, total(value, arrived)))
        self._size.append(torch.linalg.vector_norm(arrived, 1))

    def join(self, other: "Ledger") -> None:
        """Takes over the records of another pass."""
        self.started += other.started
        self._counted += other._counted  # noqa: SLF001 - of its own class
        self.taken += other.taken
        self.ended += other.ended

    def balances(self, also: Asked | None = None) -> bool:
        """Returns whether everything that started is accounted for; waits for the device.

        Args:
            also: another condition that is checked at the same time.
        """
        some = self.started[0]
        away = [*(taken.amount for taken in self.taken), *(amount for _, amount in self.ended)]
        left = _sum([*self.started, *self._counted], some)
        left = left - _sum(away, some) if away else left
        size = torch.stack([size.to(some) for size in self._size]).sum()
        alike = (left.abs() <= size * ROUNDING) & left.isfinite()
        if self._compared:
            alike = alike & (self._differing() <= ROUNDING_OF_OPERATION).all()
        if also is not None:
            alike = alike & also.holds().to(alike.device)
        further = "" if also is None else f" and {also.what}"
        return truth(alike, f"whether relevance is finite and none is lost{further}")

    def _differing(self) -> Tensor:
        """Returns the differences of the sums that were compared, relative to their sizes."""
        some = self.started[0]
        columns = list(zip(*self._compared, strict=True))[1:]
        expected, found, size = (torch.stack([t.to(some) for t in column]) for column in columns)
        return (expected - found).abs() / size.masked_fill(size == 0, 1.0)


def _sum(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([part.reshape(-1).to(like) for part in parts]).sum()


class Audit(Ledger):
    """A ledger that also compares sums for each operation, which reads every tensor."""

    def passed(
        self,
        operation: Operation,
        incoming: Sequence[Tensor | None],
        shares: Sequence[Tensor | None],
    ) -> None:
        """Records by how much an operation's shares differ from what it got."""
        super().passed(operation, incoming, shares)
        arrived, handed = ([t for t in ts if t is not None] for ts in (incoming, shares))
        taken = getattr(shares, "taken", {}).values()
        away = [*(t.sum() for t in handed), *(t.sum() for t in taken)]
        left = added_up([t.sum() for t in arrived] + [-t for t in away])
        if not all(bool(t.isfinite().all()) for t in (*handed, *taken)):
            if all(bool(t.isfinite().all()) for t in arrived) and _is_finite(operation):
                raise _not_finite(operation)
            return  # the relevance or the model was not finite before
        sizes = [sum(torch.linalg.vector_norm(t, 1) for t in ts) for ts in (arrived, handed)]
        self.compare(operation, left, torch.zeros_like(left), torch.as_tensor(max(sizes)))

    def blame(self) -> None:
        """Raises an error if an operation passes on a different sum than it got."""
        for operation, expected, found, size in self._compared:
            left = (expected - found) / size.masked_fill(size == 0, 1.0)
            if left.abs() > ROUNDING_OF_OPERATION:
                raise _unbalanced(operation, float(left))


def balanced(run: Callable[[Ledger], Result], also: Asked | None = None) -> tuple[Result, Ledger]:
    """Runs a pass and returns its result and ledger; runs it with an audit if that isn't balanced.

    Args:
        run: the pass.
        also: another condition that has to hold.

    Raises:
        ConservationError: if an operation passes on a different sum than it got without a reason.
    """
    ledger = Ledger()
    result = run(ledger)
    if ledger.balances(also):
        return result, ledger
    if also is not None and ledger.balances():
        also.require()
        return result, ledger
    uncaptured(
        "The relevance that arrives isn't finite, or differs by rounding from what has started, so "
        "the method compares the sums of each operation for this call."
    )
    audit = Audit()
    result = run(audit)
    audit.blame()
    if also is not None:
        also.require()
    return result, audit


def _is_finite(operation: Operation) -> bool:
    """Returns whether the signals that a rule may read, and the outputs, are all finite."""
    operands = [operand for operand, _ in operation.traced()]
    if not all(operand.is_kept for operand in operands):
        return True  # and the rule can't read them
    signals = [operand.tensor for operand in operands]
    outputs = [out for out in operation.replay(signals) if isinstance(out, Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in (*signals, *outputs))


_WHAT_RULES_DO = (
    "A rule passes on all relevance that it gets, or returns `Shares` with what it keeps. If the "
    "rule is not "
    "yours, please report it with the model that shows it."
)


def _unbalanced(operation: Operation, left: float) -> ConservationError:
    """The error for a rule that leaks."""
    return ConservationError(
        f"The rule for {operation.described} {'loses' if left > 0 else 'adds'} {abs(left):.2%} of "
        f"the relevance (of its absolute values) without declaring where it goes: the map would "
        f"be wrong. {_WHAT_RULES_DO}"
    )


def _not_finite(operation: Operation) -> ConservationError:
    """The error for a rule that divides by zero, say."""
    return ConservationError(
        f"The rule for {operation.described} returns NaN or infinite relevance for finite "
        "relevance and signals. Use "
        f"`captum_transformer.extend.ratio` for divisions by zero. {_WHAT_RULES_DO}"
    )
