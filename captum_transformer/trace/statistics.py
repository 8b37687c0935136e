"""Norms written in Python: which operands merely shift or divide the signal."""

from captum_transformer.trace.functions import Kind
from captum_transformer.trace.operation import Operation, Value


def is_denominator(value: Value) -> bool:
    """Whether a factor is a denominator, as ``rsqrt(mean(x ** 2))`` in a hand-written RMSNorm."""
    operation = value.origin.operation
    if operation is None:
        return False
    if operation.kind is Kind.RECIPROCAL:
        return True
    return operation.name == "pow" and negative_exponent(operation.args)


def negative_exponent(args: tuple[object, ...]) -> bool:
    """Whether the arguments of a power make it a denominator."""
    return len(args) > 1 and isinstance(args[1], (int, float)) and args[1] < 0


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
        denominators = [is_denominator(value) for value in values]
        return [not d for d in denominators] if any(denominators) else None
    if operation.kind is Kind.DIV:
        return [True, False]
    if operation.kind is Kind.SUB and operation.name != "rsub" and is_mean_of(values[1], values[0]):
        return [True, False]
    return None
