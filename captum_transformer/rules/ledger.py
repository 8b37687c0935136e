"""Adding up where something that is carried along the tape goes, without waiting for the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.calling.reading import truth
from captum_transformer.errors import ConservationError
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value

Result = TypeVar("Result")
# How much of the sum of absolute values may be rounding. Models compute parts of what they do in
# single precision whatever theirs is, and quotients magnify rounding; what a wrong rule loses is
# far more.
ROUNDING = 1e-4
# The same of one operation by itself.
ROUNDING_OF_OPERATION = 1e-3


def total(value: Value | None, carried: Tensor) -> Tensor:
    """The sum of what a value has: ``(samples,)``; of all together where they aren't known."""
    if value is None or value.samples is None:
        return carried.sum()
    return value.samples.total(carried)


def added_up(totals: Sequence[Tensor]) -> Tensor:
    """The sum of several totals; some may be of all samples together."""
    by_sample = all(one.ndim for one in totals)
    first, *others = totals if by_sample else [one.sum() for one in totals]
    for other in others:
        first = first + other
    return first


class Taken(NamedTuple):
    """What an operation hands on to nobody, and why."""

    operation: Operation
    reason: Reason
    amount: Tensor


class Asked(Protocol):
    """Something else that only the device knows, for which the host need not wait twice."""

    def holds(self) -> Tensor:
        """Whether it is true, on the device."""

    def require(self) -> None:
        """Raises if it is not."""


class Ledger:
    """What a pass started with, what was taken, and where it ended.

    Attributes:
        reached: the wanted values that something came to which counts, be it zero.
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
        """Notes what there is to be carried."""
        self.started = [total(value, seed) for value, seed in seeds.items()]
        self._size = [torch.linalg.vector_norm(seed, 1) for seed in seeds.values()]

    def count(self, amount: Tensor, times: int) -> None:
        """Notes what has started so many times, or less than none where it ended."""
        if times:
            self._counted.append(amount if times == 1 else amount * times)

    def passed(
        self,
        operation: Operation,
        incoming: Sequence[Tensor | None],  # noqa: ARG002 - for those that look closer
        shares: Sequence[Tensor | None],
    ) -> None:
        """Notes what an operation's rule owns up to."""
        for reason, amount in getattr(shares, "taken", {}).items():
            self.taken.append(Taken(operation, reason, amount))

    def compare(self, operation: Operation, expected: Tensor, found: Tensor, size: Tensor) -> None:
        """Notes two sums that must be the same, and how large what they are sums of is."""
        self._compared.append((operation, expected, found, size))

    def left(self, operation: Operation, value: Value, share: Tensor) -> None:
        """Notes what goes to a value that nobody asks for."""
        self.taken.append(Taken(operation, Reason.ELSEWHERE, total(value, share)))

    def end(self, value: Value, arrived: Tensor) -> None:
        """Notes where something is carried no further."""
        self.ended.append((value, total(value, arrived)))
        self._size.append(torch.linalg.vector_norm(arrived, 1))

    def join(self, other: "Ledger") -> None:
        """Takes over what another pass has noted."""
        self.started += other.started
        self._counted += other._counted  # noqa: SLF001 - of its own class
        self.taken += other.taken
        self.ended += other.ended

    def balances(self, also: Asked | None = None) -> bool:
        """Whether all that was there went where it is known to have gone; waits for the device.

        Args:
            also: what is asked at the same time.
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
        return truth(alike)

    def _differing(self) -> Tensor:
        """By what part of their size the sums that were compared differ."""
        some = self.started[0]
        columns = list(zip(*self._compared, strict=True))[1:]
        expected, found, size = (torch.stack([t.to(some) for t in column]) for column in columns)
        return (expected - found).abs() / size.masked_fill(size == 0, 1.0)


def _sum(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([part.reshape(-1).to(like) for part in parts]).sum()


class Audit(Ledger):
    """A ledger that also compares, operation by operation, which costs a look at every tensor."""

    def passed(
        self,
        operation: Operation,
        incoming: Sequence[Tensor | None],
        shares: Sequence[Tensor | None],
    ) -> None:
        """Notes by how much an operation's books fail to balance."""
        super().passed(operation, incoming, shares)
        arrived, handed = ([t for t in ts if t is not None] for ts in (incoming, shares))
        taken = getattr(shares, "taken", {}).values()
        away = [*(t.sum() for t in handed), *(t.sum() for t in taken)]
        left = added_up([t.sum() for t in arrived] + [-t for t in away])
        if not all(bool(t.isfinite().all()) for t in (*handed, *taken)):
            if all(bool(t.isfinite().all()) for t in arrived) and _is_finite(operation):
                raise _not_finite(operation)
            return  # there was none to begin with, in the relevance or in the model
        sizes = [sum(torch.linalg.vector_norm(t, 1) for t in ts) for ts in (arrived, handed)]
        self.compare(operation, left, torch.zeros_like(left), torch.as_tensor(max(sizes)))

    def blame(self) -> None:
        """Raises if an operation is found that hands on another sum than it got."""
        for operation, expected, found, size in self._compared:
            left = (expected - found) / size.masked_fill(size == 0, 1.0)
            if left.abs() > ROUNDING_OF_OPERATION:
                raise _unbalanced(operation, float(left))


def balanced(run: Callable[[Ledger], Result], also: Asked | None = None) -> tuple[Result, Ledger]:
    """What a pass finds, with its ledger; if that does not balance, what it finds with an audit.

    Args:
        run: the pass.
        also: what has to be true besides.

    Raises:
        ConservationError: if an operation hands on another sum than it got without a reason.
    """
    ledger = Ledger()
    result = run(ledger)
    if ledger.balances(also):
        return result, ledger
    if also is not None:
        also.require()
    audit = Audit()
    result = run(audit)
    audit.blame()
    return result, audit


def _is_finite(operation: Operation) -> bool:
    """Whether the signals that its rule may read, and what is made of them, are all numbers."""
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
