"""Carries tensors backward along the tape; the rules define what they mean."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from captum_transformer.account import Reason
from captum_transformer.errors import InvalidRuleError, UnsupportedOperationError
from captum_transformer.rules.ledger import Audit, Ledger, balanced
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.lookups import features_begin
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value


class Shares(list["Tensor | None"]):
    """The share of each traced operand of an operation, and what no operand gets.

    Args:
        shares: the share of each traced operand; None for nothing.
        taken: the sum of what no operand gets, by reason: one for each sample, or one for all.
    """

    def __init__(
        self, shares: Iterable[Tensor | None], taken: Mapping[Reason, Tensor] | None = None
    ) -> None:
        super().__init__(shares)
        self.taken = dict(taken or {})


# Given an operation and what arrived at its outputs (None: nothing did), a rule returns what goes
# on to each of its traced operands (None: nothing does).
Rule = Callable[[Operation, list[Tensor | None]], list[Tensor | None]]


def conserved(
    tape: Tape, seeds: Mapping[Value, Tensor], rule: Rule, wanted: Iterable[Value]
) -> tuple[dict[Value, Tensor], Ledger]:
    """Does the same as `propagate`, and also returns a ledger that accounts for everything.

    Raises:
        ConservationError: if a rule passes on a different sum than it got without declaring it, or
            returns NaN or infinity for finite numbers.
    """
    wanted = list(wanted)

    def run(ledger: Ledger) -> dict[Value, Tensor]:
        if isinstance(ledger, Audit):
            # If a bias is far larger than a product, the sum that was kept loses the product.
            for operation in tape.operations:
                if operation.kind is Kind.PRODUCT and operation.attention is None:
                    operation.result = None
        return propagate(tape, seeds, rule, wanted, ledger)

    return balanced(run)


def propagate(
    tape: Tape,
    seeds: Mapping[Value, Tensor],
    rule: Rule,
    wanted: Iterable[Value],
    ledger: Ledger | None = None,
) -> dict[Value, Tensor]:
    """Carries the seeds backward along the tape and returns what arrives at the wanted values.

    Only what was made from a wanted value is visited. A wanted value that nothing reaches gets
    zeros. A ledger records where everything goes.

    Raises:
        InvalidRuleError: if a rule does not return one share of the right shape for each operand.
    """
    walk = Walk(tape, seeds, rule, wanted, ledger)
    walk.down_to(0)
    return walk.arrived()


class Walk:
    """Carries seeds backward along the tape, possibly in several steps.

    Args:
        tape: the forward pass.
        seeds: the tensors to start with, by value.
        rule: returns what each operation passes on.
        wanted: the values whose share is asked for.
        ledger: records where everything goes.
    """

    def __init__(
        self,
        tape: Tape,
        seeds: Mapping[Value, Tensor],
        rule: Rule,
        wanted: Iterable[Value],
        ledger: Ledger | None = None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self.ledger.start(seeds)
        self._rule, self._asked = rule, set(wanted)
        self._sources = sum(1 << index for index in {value.index for value in self._asked})
        self._some = next(iter(seeds.values()))
        self._arriving, self._arrived = dict(seeds), dict[Value, Tensor]()
        self._first = min(map(_step, self._asked), default=0)
        self._operations = tape.operations
        self._end = max(map(_step, seeds)) + 1

    def down_to(self, place: int) -> None:
        """Continues backward down to the operation at a place, and through it."""
        last = max(place, self._first, 0)
        for operation in reversed(self._operations[last : self._end]):
            self._pass(operation)
        self._end = min(last, self._end)

    def _pass(self, operation: Operation) -> None:
        arriving, asked = self._arriving, self._asked
        incoming = [None if v is None else arriving.pop(v, None) for v in operation.outputs]
        pairs = zip(operation.outputs, incoming, strict=True)
        reached = {v: tensor for v, tensor in pairs if v is not None and tensor is not None}
        if not reached:
            return
        self._arrived |= {value: reached[value] for value in asked & reached.keys()}
        if operation.index == self._first:
            arriving |= reached
            return
        if operation.refusal is not None:
            raise operation.refusal
        shares = self._rule(operation, incoming)
        _require_fitting(operation, shares)
        self.ledger.passed(operation, incoming, shares)
        for (_, value), share in zip(operation.traced(), shares, strict=True):
            if share is None:
                continue
            if value.ancestors & self._sources or value in asked:
                arriving[value] = arriving[value] + share if value in arriving else share
            else:
                self.ledger.left(operation, value, share)

    def taken(self, value: Value) -> Tensor:
        """Returns what has arrived at a wanted value, and no longer keeps it."""
        if value in self._arrived:
            return self._arrived.pop(value)
        return self._arriving.get(value, self._some.new_zeros(value.shape))

    def arrived(self) -> dict[Value, Tensor]:
        """Returns what has arrived at the wanted values at the end, or zeros if nothing has."""
        for value, tensor in self._arriving.items():
            self.ledger.end(value, tensor)
        found = self._arrived | self._arriving
        zeros = self._some.new_zeros
        return {v: found[v] if v in found else zeros(v.shape) for v in self._asked}


def _require_fitting(operation: Operation, shares: object) -> None:
    """Raises unless there is one share for each traced operand, of its shape."""
    traced = operation.traced()
    if isinstance(shares, list) and len(shares) == len(traced):
        for share, (_, value) in zip(shares, traced, strict=True):
            if share is not None and getattr(share, "shape", None) != value.shape:
                break
        else:
            return
    given = (
        f"shares {[tuple(s.shape) if isinstance(s, Tensor) else s for s in shares]}"
        if isinstance(shares, (list, tuple))
        else f"a {type(shares).__name__}"
    )
    raise InvalidRuleError(
        f"The rule for {operation.described} returned {given}. It has to return a list, or "
        f"`Shares`, of one share for each of the {len(traced)} operands in `operation.traced()`, a "
        f"tensor of the operand's shape or None: {[tuple(value.shape) for _, value in traced]}."
    )


def _step(value: Value) -> int:
    return -1 if value.operation is None else value.operation.index


Back = Callable[[Sequence[Tensor | None]], list[Tensor | None]]


def pullback(operation: Operation, points: Sequence[Tensor]) -> tuple[list[Tensor], Back]:
    """Returns the outputs of one operation at some points, and its vector-Jacobian product."""
    with torch.enable_grad():
        leaves = [point.detach().requires_grad_() for point in points]
        outputs = operation.replay(leaves)

    def back(cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        pairs = [
            (output, cotangent.to(output.dtype))
            for output, cotangent in zip(outputs, cotangents, strict=False)
            if cotangent is not None and output.requires_grad
        ]
        if not pairs:
            return [None] * len(leaves)
        given, slopes = zip(*pairs, strict=True)
        differentiable = any(slope.requires_grad for slope in slopes)
        try:
            found = torch.autograd.grad(
                given, leaves, slopes, allow_unused=True, create_graph=differentiable
            )
        except RuntimeError as reason:
            raise unsupported(operation, f"its derivative is not defined ({reason})") from reason
        return list(found)

    return [output.detach() for output in outputs], back


def transposed(
    operation: Operation, points: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Returns the vector-Jacobian product of one operation at some points."""
    _, back = pullback(operation, points)
    return back(cotangents)


def growth(operation: Operation, points: Sequence[Tensor]) -> list[Tensor]:
    """Returns how fast the outputs of one operation grow with all operands: ``sum x df/dx``."""
    with torch.no_grad(), forward_ad.dual_level():
        growing = [forward_ad.make_dual(x, x) for x in points]  # type: ignore[no-untyped-call]
        outputs = operation.replay(growing)
        return [forward_ad.unpack_dual(y).tangent for y in outputs]  # type: ignore[no-untyped-call]


BY_GRADIENT = "ConservativeLRP needs no rules for single operations and may support it; "


def share_of_ids(operation: Operation, ids: Operand, of_features: Tensor) -> Tensor:
    """Returns the share of token ids: the sum of their embedding's share over its features.

    Args:
        operation: the lookup.
        ids: its ids.
        of_features: the share of each feature.

    Raises:
        UnsupportedOperationError: if it isn't known which features are of which id, or if the table
            depends on the inputs.
    """
    if ids is operation.argument("weight"):
        raise unsupported(operation, "the table that is looked up in depends on the inputs")
    if features_begin(operation) is None:
        raise unsupported(
            operation,
            "the features of an embedding are not its last dimensions",
            "Look the ids up as in `table[ids]`, and permute the result. ",
        )
    ndim = len(ids.size)
    rows = of_features.flatten(ndim).sum(-1) if of_features.ndim > ndim else of_features
    return rows.sum_to_size(ids.size)


def unsupported(
    operation: Operation, why: str, instead: str = BY_GRADIENT
) -> UnsupportedOperationError:
    """Returns the error for an operation that has no rule, which names an alternative."""
    if operation.kind is Kind.UNKNOWN:
        return UnsupportedOperationError(
            f"{operation.described} is not in the table of operations, so its effect on relevance "
            f"is unknown. If it is of one of the kinds in `captum_transformer.extend.Kind`, "
            f"declare it with `extend.describe_function`; otherwise, as for a recurrent layer or "
            f"a solver, write it in torch functions that are."
        )
    return UnsupportedOperationError(
        f"There is no rule for {operation.described}: {why}. {instead}CONTRIBUTING.md describes "
        f"how to add a rule."
    )
