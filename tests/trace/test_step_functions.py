"""Step functions between the inputs and the score: right by a rule, or refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import captum_transformer
from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
    extend,
)
from captum_transformer.errors import ExplanationError, UnsupportedOperationError

GRADIENTS = "ConservativeLRP GIM GenericAttentionRelevance TransformerAttribution"
WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    return 3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def attend(x):
    x = F.linear(x, WEIGHT)
    return F.scaled_dot_product_attention(x, x, x)


def model(step):
    """Attention, a layer behind a step, and attention again, with a skip connection."""
    return lambda x: attend((y := attend(x)) + step(y)).mean(1)


def _written(x):
    found = torch.zeros(x.shape)
    found[x > 0] = 1.0
    return found


def quantised(x, cast=torch.int8):
    """Activations as packed layers round them, token by token."""
    scale = 127 / x.abs().amax(-1, keepdim=True)
    return F.linear((x * scale).round().to(cast).to(x.dtype), WEIGHT) / scale


def through_integers(x):
    whole = (8 * x).to(torch.int32).view(2, 5, 2, 4).transpose(2, 3).reshape(2, 5, 8)
    return (whole.float() / 8) @ WEIGHT


STEPS = {
    "round": lambda x: x.round() @ WEIGHT,
    "decimals": lambda x: torch.round(x, decimals=1) @ WEIGHT,
    "in place": lambda x: (x * 1.0).round_() @ WEIGHT,
    "floor": lambda x: torch.floor(x) @ WEIGHT,
    "ceil": lambda x: x.ceil() @ WEIGHT,
    "trunc": lambda x: torch.trunc(x) @ WEIGHT,
    "fix": lambda x: torch.fix(x) @ WEIGHT,
    "sign": lambda x: x.sign() @ WEIGHT,
    "sign and a scale": lambda x: (x.sign() * x.abs().mean(-1, keepdim=True)) @ WEIGHT,
    "sgn": lambda x: torch.sgn(x) @ WEIGHT,
    "div": lambda x: torch.div(x, 2, rounding_mode="floor") @ WEIGHT,
    "div by a signal": lambda x: torch.div(x, 1 + x.abs(), rounding_mode="trunc") @ WEIGHT,
    "two steps": lambda x: (x.sign() * x.abs().floor()) @ WEIGHT,
    "quantised": quantised,
    "less the remainder": lambda x: (x - x % 1) @ WEIGHT,
    "less the remainder, in place": lambda x: (y := x * 1.0).sub_(y.fmod(0.5)) @ WEIGHT,
    "less the fraction": lambda x: (2 * x - 2 * x.frac()) @ WEIGHT,
    "less what is less": lambda x: (x - (x - x.floor())) @ WEIGHT,
    "by its size": lambda x: (x / x.abs()) @ WEIGHT,
    "by a root": lambda x: (x * x.square().rsqrt()) @ WEIGHT,
    "by itself": lambda x: (x.relu() / x) @ WEIGHT,
    "a function of steps": lambda x: ((y := x.floor()) * y.abs()) @ WEIGHT,
    "less what is chosen": lambda x: (x - torch.where(x.isnan(), 0.0, x % 1)) @ WEIGHT,
    "less what is written": lambda x: (x - torch.empty_like(x).copy_(x % 1)) @ WEIGHT,
    "less what is joined": lambda x: (x - torch.cat([h % 1 for h in x.chunk(2, -1)], -1)) @ WEIGHT,
    "less the larger": lambda x: (x - torch.maximum(x % 1, torch.zeros_like(x))) @ WEIGHT,
    "less what is moved": lambda x: (x.roll(1, -1) - x.frac().roll(1, -1)) @ WEIGHT,
}
MADE_OF_INTEGERS = {
    "a cast": lambda x: x.int().float() @ WEIGHT,
    "a cast of what was rounded": lambda x: (8 * x).round().to(torch.int8).to(x.dtype) @ WEIGHT,
    "rearranged": through_integers,
    "an embedding of bins": lambda x: F.embedding(
        torch.bucketize(x[..., 0].contiguous(), torch.linspace(-3, 3, 7)), WEIGHT
    ),
    "rows of bins": lambda x: WEIGHT[x[..., 0].clamp(0, 7).long()],
    "bins": lambda x: torch.bucketize(x, torch.linspace(-3, 3, 7)).float() @ WEIGHT,
    "comparisons": lambda x: (x > 0).float() @ WEIGHT,
    "comparisons, both": lambda x: ((x > 0) & (x < 1)).to(x.dtype) @ WEIGHT,
    "chosen constants": lambda x: F.linear(torch.where(x > 0, 1.0, -1.0), WEIGHT),
    "the largest": lambda x: F.one_hot(x.argmax(-1), 8).float() @ WEIGHT,
    "the largest of several": lambda x: F.one_hot(x.topk(2).indices, 8).sum(-2).float() @ WEIGHT,
    "written": lambda x: x + torch.zeros(x.shape).copy_(x.int()) @ WEIGHT,
    "written where it is larger": lambda x: _written(x) @ WEIGHT,
    "convolved": lambda x: F.conv1d((x > 0).float(), torch.ones(5, 5, 1)),
}


@pytest.mark.parametrize("method", GRADIENTS.split())
@pytest.mark.parametrize("step", [*STEPS, *MADE_OF_INTEGERS])
def test_a_gradient_does_not_go_through_a_step(step, method, x):
    explain = getattr(captum_transformer, method)(model({**STEPS, **MADE_OF_INTEGERS}[step]))
    with pytest.raises(UnsupportedOperationError, match=r"is a step function|change in steps"):
        explain.attribute(x, target=3)


@pytest.mark.parametrize("step", STEPS)
def test_methods_with_a_rule_for_entries_follow_it(step, x):
    if step == "div by a signal":
        pytest.skip("what each of two signals has of an entry is not known, which is refused")
    relevance = AttnLRP(lambda x: STEPS[step](x + attend(x)).mean(1)).attribute(x, target=3)
    assert relevance.abs().sum() > 0
    flow = AttentionRollout(model(STEPS[step])).attribute(x, target=3)
    assert flow.abs().sum() > 0


@pytest.mark.parametrize("step", ["a cast", "a cast of what was rounded"])
def test_integers_and_back_are_one_activation(step, x):
    def score(layer):
        return lambda x: F.linear(layer(x), WEIGHT.t()).mean(1)

    def rule(x):
        entries = x.int() if step == "a cast" else (8 * x).round()
        slope = torch.where(x == 0, 0.0, entries.float() / x)
        return (x * slope.detach()) @ WEIGHT

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(rule)(leaf)[:, 3].sum(), leaf)
    explain = AttnLRP(lambda x: score(MADE_OF_INTEGERS[step])(x) + 0 * attend(x).mean(1))
    torch.testing.assert_close(explain.attribute(x, target=3), x * gradient)


@pytest.mark.parametrize("step", MADE_OF_INTEGERS)
def test_the_passes_along_the_tape_refuse_what_they_can_not_follow(step, x):
    explain = TransformerAttribution(model(MADE_OF_INTEGERS[step]), propagate_to_input=True)
    if "cast" in step:
        assert explain.attribute(x, target=3).abs().sum() > 0
    else:
        with pytest.raises(UnsupportedOperationError, match="change in steps"):
            explain.attribute(x, target=3)


HARMLESS = {
    "straight through": lambda x: (x + (x.round() - x).detach()) @ WEIGHT,
    "detached": lambda x: x.detach().round() @ WEIGHT,
    "cut off": lambda x: torch.no_grad()(torch.round)(x) @ WEIGHT,
    "gate": lambda x: (x * (x > 0)) @ WEIGHT,
    "mask": lambda x: x.masked_fill(x < 0, 0.0) @ WEIGHT,
    "an additive mask": lambda x: (x + (1 - (x > -9).float()) * -1e9).softmax(-1) @ WEIGHT,
    "chosen": lambda x: torch.where(x.sign() > 0, x, 0.1 * x) @ WEIGHT,
    "indices": lambda x: x.gather(-1, x.argsort(-1)) @ WEIGHT,
    "routed": lambda x: x * F.one_hot(x.topk(2).indices, 8).sum(-2),
    "a root with a sign": lambda x: (x.sign() * (x.abs() + 1e-3).sqrt()) @ WEIGHT,
    "soft thresholds": lambda x: (F.relu(x.abs() - 0.5) * x.sign()) @ WEIGHT,
    "fractions": lambda x: (x - x.floor()) @ WEIGHT,
    "remainders": lambda x: (x % 1 + 0.1 * x) @ WEIGHT,
    "fractions, in steps": lambda x: (x - (x - x % 1)) @ WEIGHT,
    "written by hand": lambda x: (x * F.relu6(x + 3) / 6) @ WEIGHT,
    "squares with a sign": lambda x: (x * x.abs()) @ WEIGHT,
    "another's fraction": lambda x: (x - x.frac().roll(1, -1)) @ WEIGHT,
    "differences": lambda x: (x.relu() - x.relu().roll(1, -1)) @ WEIGHT,
    "fractions of some": lambda x: (x - torch.where(x > 0, x % 1, 0.0)) @ WEIGHT,
    "no unit is on": lambda x: x + (y := F.relu(x - 99)) * torch.where(x > 0, y, 5.0),
    "gated linear units": lambda x: (
        (h := x.chunk(2, -1))[0].relu().repeat(1, 1, 2) * h[1].repeat(1, 1, 2)
    ),
    "flat where it is": lambda x: x + (x.relu() - x.relu() * 1.0) @ WEIGHT,
    "between places": lambda x: ((1 + 2 * x.floor() - 2 * x) * 0.5) @ WEIGHT,
    "beside the score": lambda x: x + 0 * x.round().isnan(),
    "fake quantisation": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -99, 99),
}


@pytest.mark.parametrize("step", HARMLESS)
def test_steps_that_lose_nothing_pass(step, x):
    network = model(HARMLESS[step])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[:, 3].sum(), leaf)
    explain = ConservativeLRP(network, attention_rule=False, layer_norm_rule=False)
    torch.testing.assert_close(explain.attribute(x, target=3), x * gradient)


@pytest.mark.parametrize("method", GRADIENTS.split()[2:])
def test_steps_before_what_is_asked_for_are_left_alone(method, x):
    """Pixels that are rounded before the first layer have no part in maps of attention."""
    explain = getattr(captum_transformer, method)
    rounded = explain(lambda x: model(lambda y: y)((8 * x).round() / 8)).attribute(x, target=3)
    expected = explain(model(lambda y: y)).attribute((8 * x).round() / 8, target=3)
    torch.testing.assert_close(rounded, expected)


STRAIGHT = {
    "round": ([torch.round], lambda x: x.round() @ WEIGHT),
    "in place": ([torch.Tensor.round_], lambda x: (x * 1.0).round_() @ WEIGHT),
    "floor and sign": ([torch.floor, torch.sign], lambda x: (x.floor() + x.sign()) @ WEIGHT),
    "a cast": ([torch.int32], MADE_OF_INTEGERS["a cast"]),
    "quantised": ([torch.round, torch.int8], quantised),
}


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("method", ["ConservativeLRP", "GenericAttentionRelevance"])
@pytest.mark.parametrize("step", STRAIGHT)
def test_straight_through(step, method, checkpoint, x):
    functions, layer = STRAIGHT[step]
    written = {
        "round": lambda x: _ste(x, x.round()) @ WEIGHT,
        "in place": lambda x: _ste(x, x.round()) @ WEIGHT,
        "floor and sign": lambda x: (_ste(x, x.floor()) + _ste(x, x.sign())) @ WEIGHT,
        "a cast": lambda x: _ste(x, x.int().float()) @ WEIGHT,
        "quantised": quantised_straight_through,
    }[step]
    explain = getattr(captum_transformer, method)
    expected = explain(model(written)).attribute(x, target=3)
    with extend.straight_through(*functions):
        found = explain(model(layer), checkpoint=checkpoint).attribute(x, target=3)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ExplanationError):
        explain(model(layer)).attribute(x, target=3)


def _ste(x, stepped):
    return x + (stepped - x).detach()


def quantised_straight_through(x):
    scale = 127 / x.abs().amax(-1, keepdim=True)
    return F.linear(_ste(x * scale, (x * scale).round()), WEIGHT) / scale


@pytest.mark.parametrize("given", [torch.exp, torch.floor_divide, torch.float16, torch.bool, "x"])
def test_functions_that_do_not_round_are_refused(given):
    with pytest.raises(ValueError, match="counts as the signal that it rounds"):
        extend.straight_through(given)


def test_twice_is_refused():
    with (
        extend.straight_through(torch.round),
        pytest.raises(ValueError, match="already"),
    ):
        extend.straight_through(torch.floor, torch.round)
    extend.straight_through(torch.floor).remove()  # nothing of it has stayed


def test_other_step_functions_are_still_refused(x):
    with (
        extend.straight_through(torch.round),
        pytest.raises(UnsupportedOperationError, match=r"`floor`.*is a step function"),
    ):
        ConservativeLRP(model(lambda y: y.floor() @ WEIGHT)).attribute(x, target=3)


def test_the_message_names_the_function_and_its_module(x):
    class Rounding(nn.Module):
        def forward(self, x):
            return attend((x.round() @ WEIGHT) + x).mean(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rounding = Rounding()

        def forward(self, x):
            return self.rounding(x)

    text = r"`round` in `rounding`, on tensors of shapes \[\(2, 5, 8\)\], is a step function"
    with pytest.raises(
        UnsupportedOperationError, match=text + r".*straight_through\(torch.round\)"
    ):
        ConservativeLRP(Net()).attribute(x, target=3)


def test_a_model_that_rounds_nothing_holds_nothing(x):
    explain = GenericAttentionRelevance(model(lambda y: y * (y > 0)))
    assert explain.attribute(x, target=3).abs().sum() > 0
