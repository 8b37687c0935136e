"""Norms written in Python: which operands merely shift or divide the signal."""

from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation, Value


def is_mean_of(value: Value, signal: Value) -> bool:
    """Whether ``value`` is the signal's own mean, broadcast, as in a hand-written LayerNorm."""
    operation = value.origin.operation
    if operation is None or operation.kind is not Kind.MEAN:
        return False
    (_, source), *_ = operation.traced()
    return source.origin is signal.origin and value.shape[-1] == 1


def signal_of(operation: Operation) -> list[bool] | None:
    """For each traced operand, whether it is the signal of a hand-written norm's step.

    None if the operation is no such step: then its operands are on a par.
    """
    values = [value for _, value in operation.traced()]
    if len(values) != 2:
        return None
    if operation.kind is Kind.MUL:
        denominators = [value.is_denominator for value in values]
        return [not d for d in denominators] if any(denominators) else None
    if operation.kind is Kind.DIV:
        divided = operation.argument("input")
        return [operand is divided for operand, _ in operation.traced()]
    if operation.kind is Kind.SUB:
        signal = operation.argument("input")
        (subtracted,) = (v for o, v in operation.traced() if o is not signal)
        if is_mean_of(subtracted, signal.value):
            return [operand is signal for operand, _ in operation.traced()]
    return None
