"""What divides a signal, however written: a quotient, a reciprocal, the power of a logarithm."""

from typing import NamedTuple

from captum_transformer.trace.kinds import ENTRIES_ALONE, MOVES, Form, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value, base_of
from captum_transformer.trace.views import frozen_arguments
from captum_transformer.trace.walks import found_behind


def is_divided(operation: Operation) -> list[bool] | None:
    """Returns, for each traced operand, whether it is divided by the others.

    None if the operation does not divide: its operands then play the same role.
    """
    if len(operation.traced()) < 2:
        return None
    values = [value for _, value in operation.traced()]
    if operation.kind in (Kind.MUL, Kind.PRODUCT):
        are_signals = [not value.is_denominator for value in values]
        return are_signals if any(are_signals) and not all(are_signals) else None
    if len(values) != 2 or operation.kind not in (Kind.DIV, Kind.SOLVE):
        return None
    divided = operation.argument("input" if operation.kind is Kind.DIV else "other")
    return [operand is divided for operand, _ in operation.traced()]


class Quotient(NamedTuple):
    """A signal, its divisor, and the kind of the operation that divides."""

    signal: Value
    divisor: Value
    kind: Kind

    def is_by_same(self, other: "Quotient | None") -> bool:
        """Whether another quotient has the same divisor and kind."""
        return (
            other is not None
            and self.kind is other.kind
            and _are_alike(self.divisor, other.divisor)
        )


def quotient_of(operation: Operation | None) -> Quotient | None:
    """Returns the quotient that an operation computes, or None if it does not divide."""
    are_signals = None if operation is None else is_divided(operation)
    if operation is None or are_signals is None or len(are_signals) != 2:
        return None
    (_, signal), (_, divisor) = operation.traced()[:: 1 if are_signals[0] else -1]
    return Quotient(signal, divisor, operation.kind)


def _are_alike(one: Value, other: Value) -> bool:
    """Whether two values are the same, or were made in the same way from the same values."""
    pending, seen = [(one.origin, other.origin)], set[tuple[Value, Value]]()
    while pending:
        one, other = pair = pending.pop()
        if one is other or pair in seen:
            continue
        seen.add(pair)
        made, again = one.operation, other.operation
        if made is None or again is None or made.call is not again.call:
            return False
        if not len(made.traced()) == len(made.operands) == len(again.operands):
            return False
        if frozen_arguments(made) != frozen_arguments(again):
            return False
        pairs = zip(made.traced(), again.traced(), strict=False)
        pending += [(source.origin, same.origin) for (_, source), (_, same) in pairs]
    return True


def is_gate_by_formula(value: Value) -> bool:
    """Whether a divisor is an entrywise activation such as ``1 + exp(-x)``, not a statistic."""
    return any(found_behind(value, _is_activated))


def _is_activated(value: Value) -> list[Value] | bool:
    """Returns whether a value was activated, or values to look at: one of them may have been."""
    operation = value.operation
    if operation is None or operation.kind not in ENTRIES_ALONE | MOVES:
        return False
    if operation.kind is Kind.ENTRYWISE and operation.form is not Form.POWER:
        power = base_of(operation)
        return power is None or [power[0]]
    return False if picks(operation) else [source for _, source in operation.traced()]


def picks(operation: Operation) -> bool:
    """Whether it leaves entries out: a sum of picked entries isn't a function of one entry."""
    output, ((_, value), *_) = operation.outputs[0], operation.traced()
    left = 0 if output is None else output.shape.numel()
    return operation.kind in MOVES and left < value.shape.numel()
