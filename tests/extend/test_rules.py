"""Rules of a user's method are checked: shares, gradients and maps must fit their operation."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import TransformerAttribution, extend
from captum_transformer.errors import ConservationError, InvalidRuleError
from tests.extend.models import Model, tokens

# Operations on one signal, on two, and on a signal and constants.
RULED = pytest.mark.parametrize(
    ("kind", "named"),
    [
        (extend.Kind.ENTRYWISE, "`pow` in `Model`, on tensors of shapes [(2, 4, 8)]"),
        (extend.Kind.ADD, "`add` in `Model`, on tensors of shapes [(2, 4, 8), (2, 4, 8)]"),
        (extend.Kind.PRODUCT, "`linear` in `Model`, on tensors of shapes [(2, 8)]"),
    ],
)


def explained_with(kind, rule) -> Tensor:
    model = Model(lambda x: x**3)
    return extend.RelevanceMethod(model, {kind: rule}).attribute(tokens(), 1)


@RULED
@pytest.mark.parametrize(
    "rule",
    [
        lambda o, r: [],
        lambda o, r: extend.Shares([r] * (len(o.traced()) + 1)),
        lambda o, r: extend.Shares([r.sum(0)] * len(o.traced())),
        lambda o, r: [r.new_zeros(()) for _ in o.traced()],
        lambda o, r: [0.0 for _ in o.traced()],
        lambda o, r: r,
        lambda o, r: None,
    ],
)
def test_shares_that_do_not_fit_the_operands_are_refused(kind, named, rule):
    with pytest.raises(InvalidRuleError, match=re.escape(f"The rule for {named} returned ")):
        explained_with(kind, rule)


@RULED
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_rule_that_returns_nan_is_named(kind, named, wrong, everywhere):
    def rule(operation, relevance):
        shares = [torch.zeros(o.size, dtype=relevance.dtype) for o, _ in operation.traced()]
        for share in shares[: None if everywhere else 1]:
            share[(slice(None) if everywhere else 0, ...)] = wrong
        return extend.Shares(shares)

    with pytest.raises(ConservationError, match=re.escape(f"The rule for {named} returns NaN or")):
        explained_with(kind, rule)


@pytest.mark.parametrize("where", ["parameter", "input", "activation"])
def test_no_rule_is_blamed_for_nan_of_the_model(where):
    model, x = Model(lambda x: x / 0 * 0 if where == "activation" else x**3), tokens()
    with torch.no_grad():
        if where == "parameter":
            model.attend.in_proj_weight[0, 0] = math.nan
        if where == "input":
            x[0, 1] = math.inf
    assert not torch.isfinite(model(x)).all()
    found = TransformerAttribution(model, propagate_to_input=True).attribute(x, 1)
    assert not torch.isfinite(found).all()


def zero_over_zero(operation):
    result = operation.run(lambda o: o.tensor)
    vanishing = result - result.detach()
    return result + (vanishing / vanishing.detach()).nan_to_num()


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (lambda o: o.run(lambda x: x.tensor)[..., :-1], r"returned \[\(2, 4, 15\)\], not"),
        (lambda o: o.run(lambda x: x.tensor).sum(), r"returned \[\(\)\], not \[\(2, 4, 16\)\]"),
        (lambda o: None, "returned NoneType"),
        (lambda o: [o.run(lambda x: x.tensor)], "returned"),
        (lambda o: o.run(lambda x: x.tensor) * 1.1, "returned other numbers"),
        (lambda o: o.run(lambda x: x.tensor) * torch.nan, "returned other numbers"),
        (zero_over_zero, "has a gradient that is NaN or infinite"),
    ],
)
def test_a_rule_that_changes_more_than_the_gradient_is_refused(rule, why):
    layer = nn.Linear(8, 16).double()
    method = extend.GradientMethod(
        lambda x: layer(x).sum((1, 2)).unsqueeze(1),
        {extend.Kind.PRODUCT: rule},
    )
    with pytest.raises(InvalidRuleError, match=f"The rule for `linear`.* {why}"):
        method.attribute(torch.randn(2, 4, 8, dtype=torch.float64), target=0)


@pytest.mark.parametrize(
    "maps",
    [
        lambda call, rows: call.probabilities(rows)[..., :-1],
        lambda call, rows: call.probabilities(rows)[..., 0, :],
        lambda call, rows: None,
    ],
)
def test_a_map_that_does_not_fit_the_call_is_refused(maps):
    class Mapped(extend.MapMethod):
        def maps(self, explained, calls):
            return maps

    with pytest.raises(InvalidRuleError, match=r"`maps` of Mapped returned .* \(4, 4, 4\)"):
        Mapped(Model(torch.tanh)).attribute(tokens(), 1)
