"""Softmax weights of tokens, and what they are multiplied with."""

from captum_transformer.trace.along import weights_of_tokens
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import weighs_some_tokens
from captum_transformer.trace.value import Value
from captum_transformer.trace.weighted_constants import weights_of_constants

_MULTIPLIES = frozenset({Kind.MUL, Kind.PRODUCT})


def applied_weights(operation: Operation) -> list[tuple[Operand, Value]]:
    """Returns the softmax weights of tokens that an operation applies to a signal or to constants.

    They may be scaled by other signals, as by a gate, be of some of the tokens, cut from those of
    all, or be applied in a layout that isn't recognised as attention.
    """
    traced = operation.traced()
    if (pattern := operation.pattern) is not None:
        return [] if pattern.in_tokens else [pair for pair in traced if pair[0] in pattern.held]
    if operation.kind not in _MULTIPLIES:
        return []
    if len(traced) == 1:
        return [pair for pair in traced if pair[0] in weights_of_constants(operation)]
    whole = weights_of_tokens(operation)
    return [pair for pair in traced if pair in whole or weighs_some_tokens(pair[1])]


def held_weights(operation: Operation) -> list[Operand]:
    """Returns the operands that hold weights, unless it multiplies several weights with each other.

    Then it is unknown which of them are applied to the others.
    """
    weights, count = applied_weights(operation), len(operation.traced())
    if operation.pattern is None and len(weights) == count > 1:
        return []
    return [operand for operand, _ in weights]


def applies_unread_weights(operation: Operation) -> bool:
    """Whether a product of matrices applies softmax weights and isn't recognised as attention."""
    alone = len(operation.traced()) == 1 or operation.attention is not None
    return operation.kind is Kind.PRODUCT and not alone and bool(held_weights(operation))
