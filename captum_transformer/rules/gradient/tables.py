"""The gradient passes: which rule runs which kind of operation.

A rule runs an operation and gives what it always gives, to the last bit; only what autograd sees of
it is another. What a table has no rule for keeps its gradient: linear maps and sums (LRP-0), what
selects or scales entries, and where a function is neither, its first-order expansion, of which the
constant term takes the rest. What the table of operations lacks is refused, if there are rules.

A method is some rules joined, and `joined` asks the first ones first.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

from captum_transformer.errors import InvalidInputError
from captum_transformer.rules.gradient.gamma import (
    Gamma,
    Where,
    favour,
    favour_bias,
    favour_positive,
    note_scores,
)
from captum_transformer.rules.gradient.hold import (
    hold_divisor,
    hold_gate,
    hold_matrix,
    hold_mean,
    hold_probabilities,
    hold_statistic,
    hold_weights,
    keep_activation,
    refuse_part,
    refuse_places,
    refuse_unknown,
)
from captum_transformer.rules.gradient.share import share, share_attention, share_by_degree
from captum_transformer.rules.gradient.slope import (
    hold_deviation,
    hold_deviation_and_mean,
    identity,
    identity_of_scores,
    identity_of_sum,
    refuse_of_one_entry,
    without_empty_rows,
)
from captum_transformer.rules.gradient.temperature import at_temperature
from captum_transformer.trace.kinds import CONVOLUTIONS, Kind
from captum_transformer.trace.mode import ForwardRule, ForwardRules
from captum_transformer.trace.operation import Operation

_PLAIN: ForwardRules = {Kind.SOFTMAX: without_empty_rows}
_UNKNOWN: ForwardRules = {Kind.UNKNOWN: refuse_unknown}
# Ali et al. (ICML 2022), eq. 11 and 12.
AH: ForwardRules = {
    Kind.ATTENTION: hold_probabilities,
    Kind.PRODUCT: hold_probabilities,
    Kind.MUL: hold_weights,
    Kind.SAMPLE: refuse_places,
}
LN: ForwardRules = {
    Kind.NORM: hold_deviation,
    Kind.DIV: hold_statistic,
    Kind.MUL: hold_statistic,
    Kind.PRODUCT: hold_statistic,
    Kind.SOLVE: hold_statistic,
}
LN_AND_MEAN: ForwardRules = {**LN, Kind.NORM: hold_deviation_and_mean, Kind.SUB: hold_mean}
# Achtibat et al. (ICML 2024), eq. 9 and 14.
DIVISORS: ForwardRules = {
    Kind.NORM: hold_deviation,
    Kind.DIV: hold_divisor,
    Kind.MUL: hold_divisor,
    Kind.PRODUCT: hold_divisor,
    Kind.SOLVE: hold_matrix,
}
IDENTITY: ForwardRules = {
    **dict.fromkeys((Kind.SOFTMAX, Kind.LOG_SOFTMAX, Kind.SMOOTH_MAXIMUM), refuse_of_one_entry),
    Kind.ATTENTION: identity_of_scores,
    Kind.ENTRYWISE: identity,
    Kind.RECIPROCAL: identity,
    Kind.ADD: identity_of_sum,
    Kind.SUB: identity_of_sum,
    Kind.MUL: hold_gate,
    Kind.PRODUCT: hold_gate,
}
UNIFORM: ForwardRules = {
    Kind.ATTENTION: share_attention,
    Kind.MUL: share,
    Kind.PRODUCT: share,
    Kind.CONV: share,
    Kind.TRANSPOSED_CONV: share,
    Kind.SAMPLE: share,
    Kind.DERIVED: share_by_degree,
}


def joined(*tables: ForwardRules) -> ForwardRules:
    """One table of several: of the rules for a kind the first one that applies is taken."""
    kinds = dict.fromkeys(kind for table in tables for kind in table)
    return {kind: _first([t[kind] for t in tables if kind in t]) for kind in kinds}


def _first(rules: Sequence[ForwardRule]) -> ForwardRule:
    """The first of some rules that applies."""
    # Nothing local: methods are pickled where processes are spawned.
    return rules[0] if len(rules) == 1 else partial(_first_of, rules)


def _first_of(rules: Sequence[ForwardRule], operation: Operation) -> Any:
    for rule in rules:
        result = rule(operation)
        if result is not NotImplemented:
            operation.rule = operation.rule or rule
            return result
    return NotImplemented


def method(*tables: ForwardRules) -> ForwardRules:
    """The table of a method with these rules.

    What an unknown function does, a norm or attention perhaps, may be what a rule is for. A method
    without any rule takes its gradient, which is right for every function.
    """
    return joined(*([_UNKNOWN, *tables] if any(tables) else ()), _PLAIN)


# Its authors' code stabilises the division.
_STABILISED = partial(identity, epsilon=1e-10)
_IDENTITY: ForwardRules = {
    **IDENTITY,
    Kind.ENTRYWISE: _STABILISED,
    Kind.RECIPROCAL: _STABILISED,
}


def favoured(gamma: float, where: Where) -> ForwardRules:
    """LRP-gamma in some of the linear maps with constant weights; see `favour`.

    Args:
        gamma: how much more counts what has the sign of the output; none where it is zero.
        where: says whether an operation is one of them.
    """
    if not isinstance(gamma, Real) or not 0 <= gamma < math.inf:
        raise InvalidInputError(f"gamma must be a non-negative number, got {gamma!r}.")
    if not gamma:
        return {}
    rule = partial(favour, gamma=gamma, where=where)
    maps = dict.fromkeys((Kind.PRODUCT, *CONVOLUTIONS), rule)
    scores = dict.fromkeys((Kind.PRODUCT, Kind.MUL), note_scores)
    return joined(scores, maps, dict.fromkeys((Kind.ADD, Kind.SUB), favour_bias))


def attn_lrp(gamma: float | None = None, conv_gamma: float | None = None) -> ForwardRules:
    """The table of Achtibat et al. (ICML 2024).

    Args:
        gamma: of LRP-gamma in linear layers.
        conv_gamma: of LRP-gamma in convolutions.
    """
    gammas = (
        favoured(conv_gamma or 0.0, _is_convolution),
        favoured(gamma or 0.0, _is_product),
    )
    return method(*gammas, DIVISORS, _IDENTITY, UNIFORM)


def _is_convolution(operation: Operation) -> bool:
    return operation.kind in CONVOLUTIONS


def _is_product(operation: Operation) -> bool:
    return operation.kind is Kind.PRODUCT


ATTN_LRP = attn_lrp()
# What is written as products and quotients and has its own gradient: activations, and softmaxes.
_WHOLE: ForwardRules = dict.fromkeys((Kind.DIV, Kind.MUL, Kind.PRODUCT), refuse_part)
_ACTIVATIONS: ForwardRules = dict.fromkeys((Kind.MUL, Kind.PRODUCT), keep_activation)


def gim(temperature: float) -> ForwardRules:
    """The table of Edin et al. (2025).

    Args:
        temperature: at which attention's softmax has its gradient; at one that is its own.
    """
    softmax = {} if temperature == 1 else at_temperature(temperature)
    return method(softmax, LN, _WHOLE, _ACTIVATIONS, UNIFORM)


# Each factor of a gate gets half.
HALF: ForwardRules = {Kind.MUL: share}


def libra(*, attention_rule: bool = True) -> ForwardRules:
    """The table of LibraGrad (CVPR 2025) and RelP (2025): all that is not linear is held.

    Args:
        attention_rule: hold the attention probabilities constant (AH); without it products of
            attention keep their gradient, and only gates are halved.
    """
    tables = [AH, DIVISORS, IDENTITY, UNIFORM] if attention_rule else [DIVISORS, IDENTITY, HALF]
    return method(*tables)


def conservative_lrp(
    *,
    attention_rule: bool = True,
    layer_norm_rule: bool = True,
    hold_mean: bool = False,
    gammas: Mapping[int, Gamma] | None = None,
) -> ForwardRules:
    """The table of Ali et al. (ICML 2022).

    Args:
        attention_rule: hold the attention probabilities constant (AH).
        layer_norm_rule: hold what divides the signal in a norm constant (LN).
        hold_mean: with the LN rule, hold the mean that a LayerNorm subtracts constant, too.
        gammas: LRP-gamma for linear layers, by the place of their operation on the tape.
    """
    tables = []
    if attention_rule:
        tables.append(AH)
    if gammas:
        tables.append({Kind.PRODUCT: favour_positive(gammas)})
    if layer_norm_rule:
        tables.append(LN_AND_MEAN if hold_mean else LN)
    return method(*tables)
