"""Loops in a model: values are reached on more ways than could ever be followed one by one."""

import pytest
import torch
from torch import nn

from captum_transformer import ConservativeLRP, GenericAttentionRelevance
from captum_transformer.errors import UnsupportedOperationError
from tests.attr.subjects import EACH_WAY, METHODS

STEPS = 40  # two ways at each step: a million million


def sinkhorn(weights):
    for _ in range(STEPS):
        weights = weights / weights.sum(-2, keepdim=True)
        weights = weights / weights.sum(-1, keepdim=True)
    return weights


def normalised_again(weights):
    for _ in range(STEPS):
        weights = (weights * weights).sqrt()
        weights = weights / weights.sum(-1, keepdim=True)
    return weights


def polynomial(x):
    for _ in range(STEPS):
        x = x - 0.01 * x * x * x
    return x


def divided_by_a_polynomial(x):
    divisor = 1 + 0.1 * x.square()
    for _ in range(STEPS):
        divisor = divisor + 0.001 * divisor * divisor
    return x / divisor


def multiplied_by_reciprocals(x):
    reciprocal = 1 / (1 + x.square())
    for _ in range(STEPS):
        reciprocal = (reciprocal * reciprocal).sqrt()
    return x * reciprocal


def iteration(x):
    y = 0.1 * x
    for _ in range(STEPS):
        y = 0.5 * (y + x / (1 + y * y))
    return y


def halves_exchanged(x):
    for _ in range(STEPS):
        x = torch.cat([x[..., 4:], x[..., :4]], -1) + 0
    return x


def many_small_steps(x):
    for _ in range(1200):  # more than Python's limit of nested calls
        x = x + 0.001
    return x


ON_WEIGHTS = [sinkhorn, normalised_again]
ON_TOKENS = [
    polynomial,
    divided_by_a_polynomial,
    multiplied_by_reciprocals,
    iteration,
    halves_exchanged,
    many_small_steps,
]


class Model(nn.Module):
    def __init__(self, loop):
        super().__init__()
        torch.manual_seed(0)
        self.loop = loop
        self.project = nn.Linear(8, 24)
        self.head = nn.Linear(8, 3)
        self.hold = False

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, -1)
        weights = (query @ key.mT / 8**0.5).softmax(-1)
        if self.loop in ON_WEIGHTS:
            weights = self.loop(weights)
        weights = self.weights = weights.detach() if self.hold else weights
        x = x + weights @ value
        return self.head((self.loop(x) if self.loop in ON_TOKENS else x).mean(1))


LOOPS = pytest.mark.parametrize("loop", ON_WEIGHTS + ON_TOKENS, ids=lambda loop: loop.__name__)


def model_and_inputs(loop):
    model = Model(loop).double()
    return model, torch.randn(2, 5, 8, dtype=torch.float64)


@LOOPS
@pytest.mark.parametrize("name", EACH_WAY)
def test_loops_end(name, loop):
    model, inputs = model_and_inputs(loop)
    if name == "GIM" and loop is sinkhorn:
        with pytest.raises(UnsupportedOperationError, match="normalised again"):
            METHODS[name](model).attribute(inputs, 1)
        return
    relevance = METHODS[name](model).attribute(inputs, 1)
    assert relevance.isfinite().all()
    assert relevance.any()


@LOOPS
def test_maps_are_those_of_the_formula(loop):
    model, inputs = model_and_inputs(loop)
    relevance = GenericAttentionRelevance(model, pooled_evidence=False).attribute_tokens(inputs, 1)
    score = model(inputs.requires_grad_())[:, 1].sum()
    (slope,) = torch.autograd.grad(score, model.weights)
    torch.testing.assert_close(relevance, (slope * model.weights).relu().mean(1).detach())


@LOOPS
def test_gradients_are_those_with_held_weights(loop):
    model, inputs = model_and_inputs(loop)
    relevance = ConservativeLRP(model).attribute(inputs, 1)
    model.hold = True
    (slope,) = torch.autograd.grad(model(inputs.requires_grad_())[:, 1].sum(), inputs)
    torch.testing.assert_close(relevance, (inputs * slope).detach())
