"""Softmax weights of tokens, and what they are multiplied with."""

from captum_transformer.trace.along import weights_of_tokens
from captum_transformer.trace.kinds import ENTRIES_ALONE, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import scores_of
from captum_transformer.trace.statistics import softmax_dim
from captum_transformer.trace.value import Value
from captum_transformer.trace.walks import found_behind
from captum_transformer.trace.weighted_constants import weights_of_constants

_MULTIPLIES = frozenset({Kind.MUL, Kind.PRODUCT})
_KEEPS_NUMBERS = MOVES | ENTRIES_ALONE | {Kind.SOFTMAX}


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


def weighs_some_tokens(value: Value) -> bool:
    """Whether a value holds softmax weights of tokens, of all of them or cut from those of all.

    Those that were cut out may be of experts, unless queries and keys have made them or it is known
    that the softmax is over tokens.
    """
    if not value.is_cut:
        return value.weighs_tokens
    if all(_are_of_tokens(weights) for weights in found_behind(value, _before_cuts)):
        return True
    scores = scores_of(value)
    return scores is not None and len(scores.traced()) > 1


def _before_cuts(value: Value) -> list[Value] | Value:
    """Returns weights that show whether they are of tokens, or for others, what they come from."""
    operation = value.operation
    if operation is None or softmax_dim(operation) is not None:
        return value
    if not value.is_cut and value.features is not None:
        return value
    return [v for _, v in operation.traced() if v.is_cut or v.weighs_tokens] or value


def _are_of_tokens(weights: Value) -> bool:
    """Whether it is known that all of the weights that a softmax has made are of tokens.

    They are where each token had a single number, whose dimension was dropped.
    """
    if weights.features is not None:
        return weights.weighs_tokens
    value = weights
    while value.features is None:
        operation = value.operation
        if operation is None or operation.kind not in _KEEPS_NUMBERS:
            return False
        sources = [source for _, source in operation.traced()]
        if len(sources) != 1:
            return False
        (value,) = sources
    return all(axis.size == 1 for axis in value.features)


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
    if operation.kind is not Kind.PRODUCT or operation.attention is not None:
        return False
    return len(operation.traced()) > 1 and bool(held_weights(operation))
