"""The gradient passes: which rule runs which kind of operation.

A rule runs an operation and returns exactly its usual result; only the gradient that autograd sees
differs. Operations without a rule keep their gradient: linear maps and sums (LRP-0), operations
that select or scale entries, and all others, as their first-order expansion, whose constant term
takes the rest. Operations that are not in the table of operations are refused if there are rules.

A method joins several tables of rules; `joined` tries the first ones first.
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
    refuse_entries,
    refuse_positive_bias,
)
from captum_transformer.rules.gradient.hold import (
    hold_divisor,
    hold_gate,
    hold_matrix,
    hold_mean,
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
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.recorder import ForwardRule, ForwardRules

_PLAIN: ForwardRules = {Kind.SOFTMAX: without_empty_rows}
_UNKNOWN: ForwardRules = {Kind.UNKNOWN: refuse_unknown}
# Ali et al. (ICML 2022), eq. 11 and 12.
AH: ForwardRules = {
    **dict.fromkeys((Kind.ATTENTION, Kind.PRODUCT, Kind.MUL), hold_weights),
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


_HOLD = (hold_divisor, hold_statistic, hold_weights)


def joined(*tables: ForwardRules) -> ForwardRules:
    """Joins tables into one: of the rules for a kind, the first one that applies is used."""
    kinds = dict.fromkeys(kind for table in tables for kind in table)
    return {kind: _first([t[kind] for t in tables if kind in t]) for kind in kinds}


def _first(rules: Sequence[ForwardRule]) -> ForwardRule:
    """Returns a rule that runs the first of some rules that applies.

    What a rule leaves of a product's factors, if it holds some of them, is shared by the uniform
    rule, if that is one of the rules, too.
    """
    rules = [one for rule in rules for one in _alternatives(rule)]
    if share in rules:
        rules = [partial(rule, shares=True) if rule in _HOLD else rule for rule in rules]
    # No local function: methods are pickled where processes are spawned.
    return rules[0] if len(rules) == 1 else partial(_first_of, rules)


def _alternatives(rule: ForwardRule) -> Sequence[ForwardRule]:
    """Returns the rules that a rule made by `_first` tries."""
    if isinstance(rule, partial) and rule.func is _first_of:
        joined_rules: Sequence[ForwardRule] = rule.args[0]
        return joined_rules
    return [rule]


def _first_of(rules: Sequence[ForwardRule], operation: Operation) -> Any:
    for rule in rules:
        result = rule(operation)
        if result is not NotImplemented:
            operation.rule = operation.rule or rule
            return result
    return NotImplemented


def method(*tables: ForwardRules) -> ForwardRules:
    """Returns the table of a method with these rules.

    Unknown functions are refused: they may compute what a rule is for, such as a norm or attention.
    A method without any rule uses their gradient, which is right for every function.
    """
    return joined(*([_UNKNOWN, *tables] if any(tables) else ()), _PLAIN)


# The authors' code stabilises the division.
_STABILISED = partial(identity, epsilon=1e-10)
_IDENTITY: ForwardRules = {
    **IDENTITY,
    Kind.ENTRYWISE: _STABILISED,
    Kind.RECIPROCAL: _STABILISED,
}


_OF_ENTRIES: ForwardRules = dict.fromkeys((Kind.SUM, Kind.MEAN), refuse_entries)


def favoured(gamma: float, where: Where) -> ForwardRules:
    """Returns the rules of LRP-gamma for some linear maps with constant weights; see `favour`.

    Args:
        gamma: how much more terms with the sign of the output count; no rule if it is zero.
        where: returns whether an operation is one of these maps.
    """
    if not isinstance(gamma, Real) or not 0 <= gamma < math.inf:
        raise InvalidInputError(f"gamma must be a non-negative number, got {gamma!r}.")
    if not gamma:
        return {}
    rule = partial(favour, gamma=gamma, where=where)
    maps = dict.fromkeys((Kind.PRODUCT, *CONVOLUTIONS), rule)
    scores = dict.fromkeys((Kind.PRODUCT, Kind.MUL), note_scores)
    later = dict.fromkeys((Kind.ADD, Kind.SUB), favour_bias)
    return joined(scores, maps, later, _OF_ENTRIES if where is _is_product else {})


def attn_lrp(gamma: float | None = None, conv_gamma: float | None = None) -> ForwardRules:
    """The table of Achtibat et al. (ICML 2024).

    Args:
        gamma: the gamma of LRP-gamma in linear layers.
        conv_gamma: the gamma of LRP-gamma in convolutions.
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
# Functions written as products and quotients that keep their gradient: activations, softmaxes.
_WHOLE: ForwardRules = dict.fromkeys((Kind.DIV, Kind.MUL, Kind.PRODUCT), refuse_part)
_ACTIVATIONS: ForwardRules = dict.fromkeys((Kind.MUL, Kind.PRODUCT), keep_activation)


def gim(temperature: float) -> ForwardRules:
    """The table of Edin et al. (2025).

    Args:
        temperature: where the gradient of attention's softmax is taken; one for its own gradient.
    """
    softmax = {} if temperature == 1 else at_temperature(temperature)
    return method(softmax, LN, _WHOLE, _ACTIVATIONS, UNIFORM)


# Each factor of a gate gets half.
HALF: ForwardRules = {Kind.MUL: share}


def libra(*, attention_rule: bool = True) -> ForwardRules:
    """The table of LibraGrad (CVPR 2025) and RelP (2025): holds all that is not linear constant.

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
        layer_norm_rule: hold the divisor of a norm constant (LN).
        hold_mean: with the LN rule, hold the mean that a LayerNorm subtracts constant, too.
        gammas: LRP-gamma for linear layers, by the index of their operation on the tape.
    """
    tables = []
    if attention_rule:
        tables.append(AH)
    if gammas:
        later = dict.fromkeys((Kind.ADD, Kind.SUB), refuse_positive_bias)
        tables.append({Kind.PRODUCT: favour_positive(gammas), **later, **_OF_ENTRIES})
    if layer_norm_rule:
        tables.append(LN_AND_MEAN if hold_mean else LN)
    return method(*tables)
