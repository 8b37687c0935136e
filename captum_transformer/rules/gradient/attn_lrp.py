"""The gradient pass of AttnLRP (Achtibat et al., ICML 2024).

As in the ICML 2022 pass nothing that an operation computes is changed, only what autograd sees of
it. What has no rule here (linear maps, additions, softmax, rearrangements) keeps its gradient.
"""

from collections.abc import Callable
from typing import Any

from captum_transformer.rules.gradient.activation import identity_rule
from captum_transformer.rules.gradient.norms import hold_denominator
from captum_transformer.rules.gradient.product import attend, uniform_rule
from captum_transformer.rules.gradient.softmax import without_empty_rows
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.recognise import Pattern
from captum_transformer.trace.tape import Tape


def attn_lrp_rule(
    kind: Kind,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    name: str,
    pattern: Pattern | None,  # noqa: ARG001 - attention is two products like any other
    tape: Tape,
) -> Any:
    """See `ForwardRule`."""
    if kind is Kind.ATTENTION:
        return attend(call, kwargs, tape)
    if kind is Kind.SOFTMAX:
        return without_empty_rows(call, args, kwargs)
    result = hold_denominator(kind, call, args, kwargs, name=name)
    for rule in (identity_rule, uniform_rule):
        if result is NotImplemented:
            result = rule(kind, call, args, kwargs, name=name, tape=tape)
    return result
