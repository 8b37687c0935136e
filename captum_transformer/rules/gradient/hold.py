"""Operands that count as constants: what divides a signal, and what weights or gates it."""

from collections.abc import Collection
from typing import Any

from captum_transformer.rules.propagate import unsupported
from captum_transformer.trace.gates import are_of_one_entry, is_gate, works_by_entry
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.recognise import are_probabilities
from captum_transformer.trace.statistics import signal_of

_WITHOUT_AH = "With `attention_rule=False` they count as any other part of the gradient; "


def with_held(operation: Operation, held: Collection[Operand]) -> Any:
    """Runs an operation with some of its operands as constants."""
    return operation.run(lambda o: o.tensor.detach() if o in held else o.tensor)


def hold_divisor(operation: Operation) -> Any:
    """What divides a signal is held, in norms and in activations alike."""
    parts = _signal_and_divisor(operation)
    return NotImplemented if parts is None else with_held(operation, [parts[1][0]])


def hold_statistic(operation: Operation) -> Any:
    """The LN rule (Ali et al., eq. 12) for norms written in Python: what divides a signal is held.

    So is the signal's mean that is subtracted, where a table has this rule for differences.
    A divisor that is made entry by entry of what the signal is made of belongs to an activation,
    as in ``x / (1 + exp(-x))``, and not to a norm.
    """
    parts = _signal_and_divisor(operation)
    if parts is None:
        return NotImplemented
    (_, signal), (operand, divisor) = parts
    return NotImplemented if are_of_one_entry(divisor, signal) else with_held(operation, [operand])


def _signal_and_divisor(operation: Operation) -> list[tuple[Operand, Value]] | None:
    """The operands of a step of a norm, the signal first."""
    are_signals = signal_of(operation)
    if are_signals is None or not any(are_signals):
        return None
    return operation.traced()[:: 1 if are_signals[0] else -1]


def hold_gate(operation: Operation) -> Any:
    """The identity rule for activations written in Python: in ``x * gate(x)`` the gate is held.

    So the slope is f(x) / x without a division.
    """
    traced = operation.traced()
    if len(traced) != 2 or not works_by_entry(operation):
        return NotImplemented
    for (_, signal), (operand, gate) in (traced, traced[::-1]):
        if is_gate(gate, signal):
            return with_held(operation, [operand])
    return NotImplemented


def hold_probabilities(operation: Operation) -> Any:
    """The AH rule (Ali et al., eq. 11): attention is a linear map of its values.

    With queries and keys held, a fused kernel's backward is all that is needed. Probabilities that
    were cut up or rearranged are held, too.
    """
    if operation.pattern is not None:
        return with_held(operation, operation.pattern.held)
    traced = operation.traced()
    if operation.kind is not Kind.PRODUCT or len(traced) < 2:
        return NotImplemented
    held = [operand for operand, value in traced if are_probabilities(value)]
    if len(held) == len(traced):
        operation.refusal = unsupported(
            operation,
            "it multiplies softmax probabilities, cut up or rearranged, with one another, and "
            "which of them weight which can't be told, so they can't be held constant",
            _WITHOUT_AH,
        )
        return NotImplemented
    return with_held(operation, held) if held else NotImplemented


def hold_weights(operation: Operation) -> Any:
    """The AH rule for attention whose weighted sum is not written as a matrix product.

    That is an entry-wise product of a signal and softmax weights of its tokens (as in MobileViTv2).
    """
    traced = operation.traced()
    weights = [operand for operand, value in traced if value.weighs_tokens]
    return with_held(operation, weights) if 0 < len(weights) < len(traced) else NotImplemented


def refuse_places(operation: Operation) -> Any:
    """Places that follow from the inputs, as in deformable attention, are no probabilities."""
    signal = operation.argument("input")
    if any(operand is not signal for operand, _ in operation.traced()):
        operation.refusal = unsupported(
            operation,
            "it reads a signal at places that depend on the inputs, as in deformable attention, "
            "and the theory says what attention probabilities get, but not what places do",
            _WITHOUT_AH,
        )
    return NotImplemented


def refuse_unknown(operation: Operation) -> Any:
    """What an operation does that the table lacks, and so what gets its relevance, is unknown."""
    operation.refusal = unsupported(operation, "it is not in the table of known operations", "")
    return NotImplemented
