"""Rules that hold operands constant: those that divide, weight or gate a signal."""

from collections.abc import Collection
from typing import Any

import torch

from captum_transformer.rules.gradient.share import divided, shares_of
from captum_transformer.rules.propagate import BY_GRADIENT, unsupported
from captum_transformer.trace.applied_weights import applied_weights, held_weights
from captum_transformer.trace.gates import (
    are_of_one_entry,
    constant_term,
    steps_with_numbers,
)
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.meetings import Meeting, meeting
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.quotients import is_divided, is_gate_by_formula
from captum_transformer.trace.statistics import (
    is_mean,
    signal_of,
    softmax_dim,
    subtracted,
    sums_exponentials,
    sums_to_one_again,
)
from captum_transformer.trace.value import Value

# Saved with the needed tensors: no native operation saves a tensor of this shape, so checkpointing,
# which would recompute the native operation, notices that it is a different one.
MARK = torch.empty(0, 0)
_WITHOUT_AH = "With `attention_rule=False` they are treated like other signals; "


def with_held(operation: Operation, held: Collection[Operand], *, shares: bool = False) -> Any:
    """Runs an operation with some operands held constant; if there are none, no rule applies.

    With `shares`, each of several other factors gets the same share.
    """
    if not held:
        return NotImplemented
    others = (operand for operand, _ in operation.traced() if operand not in held)
    return divided(operation, shares_of(others) if shares else {}, held)


def refused(operation: Operation, why: str, instead: str = BY_GRADIENT) -> Any:
    """Leaves an operation unchanged, but refuses it if relevance arrives there."""
    operation.refusal = unsupported(operation, why, instead)
    return NotImplemented


def hold_divisor(operation: Operation, *, shares: bool = False) -> Any:
    """Holds the divisor of a signal constant, in norms as well as in activations."""
    signals, divisors = _divided(operation)
    if not divisors or (operation.kind is Kind.DIV and sums_to_one_again(operation)):
        return NotImplemented  # the gradient is that of a softmax
    if not are_of_one_entry(*signals.values(), *divisors.values()):
        if _is_of_softmax(operation, signals, divisors):
            return _refused_softmax(operation)
        if signal_of(operation) is None:
            return _refused_gate(operation)
    return with_held(operation, divisors, shares=shares)


def refuse_part(operation: Operation) -> Any:
    """Refuses divisors of functions, except norms, that rules for products would take apart.

    A softmax written by hand is a function of its own, and so are softmax weights that are divided
    by their sum: as quotients they keep their gradient.
    """
    signals, divisors = _divided(operation)
    if not divisors or are_of_one_entry(*signals.values(), *divisors.values()):
        return NotImplemented
    if _is_of_softmax(operation, signals, divisors):
        whole = softmax_dim(operation) is not None or sums_to_one_again(operation)
        return (
            NotImplemented if operation.kind is Kind.DIV and whole else _refused_softmax(operation)
        )
    return NotImplemented if signal_of(operation) is not None else _refused_gate(operation)


def _refused_softmax(operation: Operation) -> Any:
    return refused(
        operation,
        "it normalises by sums of exponentials or of softmax weights, as a softmax written by hand "
        "does, and the rule is for the whole of one",
        "Call `torch.softmax` if it is one, and divide softmax weights by their sum; ",
    )


def _refused_gate(operation: Operation) -> Any:
    if operation.kind is not Kind.DIV:
        return NotImplemented  # a product with an activation
    return refused(
        operation,
        "it divides by an activation of another signal, and the rule is for products",
        "Multiply by the gate, as by `torch.sigmoid(x)`; ",
    )


def hold_matrix(operation: Operation) -> Any:
    """Holds the matrix of a system of equations constant, like the divisor of a norm."""
    _, divisors = _divided(operation)
    return with_held(operation, divisors)


def hold_statistic(operation: Operation, *, shares: bool = False) -> Any:
    """The LN rule (Ali et al., eq. 12) for norms written in Python: holds the divisor constant.

    A divisor that is computed entry by entry from what the signal is computed from belongs to an
    activation, as in ``x / (1 + exp(-x))``, and not to a norm. Neither is the divisor of a softmax
    written by hand a norm's.
    """
    signals, divisors = _divided(operation)
    is_norm = divisors and signal_of(operation) is not None
    if not is_norm or are_of_one_entry(*signals.values(), *divisors.values()):
        return NotImplemented
    return (
        NotImplemented
        if _is_of_softmax(operation, signals, divisors)
        else with_held(operation, divisors, shares=shares)
    )


def hold_mean(operation: Operation) -> Any:
    """Holds constant the signal's own mean, which a norm written in Python subtracts."""
    steps = [step for step in subtracted(operation) if is_mean(step) is not False]
    if any(is_mean(step) is None for step in steps):
        return refused(
            operation,
            "the operations before don't show which of its dimensions are features, so whether it "
            "subtracts the mean of each token is not known",
            "Call `nn.LayerNorm` or `F.layer_norm`, or `nn.Linear` or `F.linear` before it; ",
        )
    return with_held(operation, [o for s in steps for o, v in operation.traced() if v is s.value])


def _divided(operation: Operation) -> tuple[dict[Operand, Value], dict[Operand, Value]]:
    """Returns the signals of an operation, and the operands that divide them."""
    are_signals = is_divided(operation)
    if are_signals is None:
        return {}, {}
    parts = list(zip(operation.traced(), are_signals, strict=True))
    signals, divisors = (dict(t for t, is_one in parts if is_one is one) for one in (True, False))
    return signals, divisors


def _is_of_softmax(
    operation: Operation, signals: dict[Operand, Value], divisors: dict[Operand, Value]
) -> bool:
    """Whether an operation is the last step of a softmax by hand, or of what a softmax weights."""
    return sums_to_one_again(operation) or any(
        sums_exponentials(divisor, *signals.values()) for divisor in divisors.values()
    )


def hold_gate(operation: Operation) -> Any:
    """The identity rule for activations written in Python: holds the gate of ``x * gate(x)``.

    The slope is then f(x) / x, without a division.
    """
    found = meeting(operation)
    if found is None:
        return NotImplemented
    factors = [pair for pair in operation.traced() if pair[0].role is not Role.BIAS]
    (signal, value), *gates = sorted(factors, key=lambda pair: is_gate_by_formula(pair[1]))
    adds = constant_term(steps_with_numbers(value)) is not None
    holds = found.is_whole and not adds and len(factors) == len(operation.traced())
    if found.is_split or (holds and signal in found.lacking):
        return _refused_in_parts(operation, found)
    return with_held(operation, [operand for operand, _ in gates] if holds else [])


def keep_activation(operation: Operation) -> Any:
    """Keeps the gradient of activations written in Python, which are products of signals."""
    found = meeting(operation)
    if found is not None and found.is_whole:
        return operation.run(lambda operand: operand.tensor)
    if found is not None and found.is_gate:
        return _refused_in_parts(operation, found)
    return NotImplemented


def _refused_in_parts(operation: Operation, found: Meeting) -> Any:
    instead = "Multiply by the activation, as by `torch.sigmoid(x)` or `F.silu(x)`; "
    return refused(operation, found.why_refused, instead)


def hold_weights(operation: Operation, *, shares: bool = False) -> Any:
    """The AH rule (Ali et al., eq. 11): attention is a linear map of its values.

    With queries and keys held constant, a fused kernel's own backward is enough. Weights that were
    cut up, rearranged or scaled by a gate are held, too, and so are those that weight constants,
    such as relative values, and those whose weighted sum is not written as a matrix product, as in
    MobileViTv2.
    """
    held = held_weights(operation)
    if held or not applied_weights(operation):
        return with_held(operation, held, shares=shares)
    if operation.kind is Kind.PRODUCT:
        return refused(
            operation,
            "it multiplies softmax weights with one another, and it is unknown which of them are "
            "applied to the others, so they can't be held constant",
            _WITHOUT_AH,
        )
    if any(value.features is None for _, value in operation.traced()):
        return refused(
            operation,
            "it multiplies softmax weights with one another, and the operations before don't show "
            "which dimensions are features, so it is unknown which of them are weights of tokens",
            f"Use `nn.Linear` or `F.linear` for layers of features. {_WITHOUT_AH}",
        )
    return NotImplemented


def refuse_places(operation: Operation) -> Any:
    """Refuses sampling positions that depend on the inputs, as in deformable attention."""
    signal = operation.argument("input")
    if any(operand is not signal for operand, _ in operation.traced()):
        return refused(
            operation,
            "it samples a signal at positions that depend on the inputs, as in deformable "
            "attention, and the theory defines the relevance of attention probabilities, but not "
            "of positions",
            _WITHOUT_AH,
        )
    return NotImplemented


def refuse_unknown(operation: Operation) -> Any:
    """Refuses an operation that is not in the table: it is unknown what gets its relevance."""
    return refused(operation, "it is not in the table of known operations", "")
