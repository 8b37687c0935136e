"""Attention without a softmax over keys: which rules can follow it."""

import warnings

import pytest
import torch
from torch import nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import NoAttentionError
from tests.flow.wirings import LinearAttention, WeightedTokens

WIDTH, CLASSES = 6, 4


def full_lrp(model):
    return TransformerAttribution(model, propagate_to_input=True)


LRP = {"ConservativeLRP": ConservativeLRP, "AttnLRP": AttnLRP, "full LRP": full_lrp}


def in_place(weights, keys):
    return keys.clone().mul_(weights).sum(1, keepdim=True)


WEIGHTED_SUMS = {
    "product and sum": lambda weights, keys: (weights * keys).sum(1, keepdim=True),
    "other way round": lambda weights, keys: torch.mul(keys, weights).sum(dim=1)[:, None],
    "in place": in_place,
    "expanded": lambda weights, keys: (keys * weights.expand_as(keys)).sum(1, keepdim=True),
    "channels first": lambda weights, keys: (keys.mT * weights.mT).sum(-1)[:, None],
}


def as_matrix_product(weights, keys):
    return weights.mT @ keys


class Separable(nn.Module):
    """As in MobileViTv2: all tokens share one weighted sum of keys."""

    def __init__(self, weighted_sum, hold=False):
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Linear(WIDTH, 1 + 2 * WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        self.weighted_sum, self.hold = weighted_sum, hold
        self.double()

    def forward(self, x):
        query, keys, values = self.into(x).split([1, WIDTH, WIDTH], -1)
        weights = query.softmax(1)
        weights = weights.detach() if self.hold else weights
        context = self.weighted_sum(weights, keys)
        return self.head((values.relu() * context).mean(1))


def embeddings(tokens=5, width=WIDTH):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, tokens, width, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("weighted_sum", WEIGHTED_SUMS.values(), ids=WEIGHTED_SUMS)
def test_softmax_weights_are_held_however_they_are_applied(weighted_sum, tokens):
    x = embeddings(tokens).requires_grad_()
    found = ConservativeLRP(Separable(weighted_sum)).attribute(x, 1)
    score = Separable(as_matrix_product, hold=True)(x)[:, 1].sum()
    torch.testing.assert_close(found, (x * torch.autograd.grad(score, x)[0]).detach())


@pytest.mark.parametrize("method", LRP.values(), ids=LRP)
@pytest.mark.parametrize("weighted_sum", WEIGHTED_SUMS.values(), ids=WEIGHTED_SUMS)
def test_a_weighted_sum_and_a_matrix_product_are_the_same_to_lrp(weighted_sum, method):
    found = method(Separable(weighted_sum)).attribute(embeddings(), 1)
    torch.testing.assert_close(
        found, method(Separable(as_matrix_product)).attribute(embeddings(), 1)
    )


def test_a_weighted_sum_conserves_relevance():
    class Pooled(Separable):
        def forward(self, x):
            query, keys, _ = self.into(x).split([1, WIDTH, WIDTH], -1)
            return self.head(self.weighted_sum(query.softmax(1), keys)[:, 0])

    for weighted_sum in WEIGHTED_SUMS.values():
        method = ConservativeLRP(Pooled(weighted_sum))
        _, delta = method.attribute(embeddings(), 1, return_convergence_delta=True)
        torch.testing.assert_close(delta, torch.zeros_like(delta))


def test_a_softmax_over_features_is_no_weight_of_tokens():
    class Gated(Separable):
        def forward(self, x):
            _, keys, values = self.into(x).split([1, WIDTH, WIDTH], -1)
            gated = values.softmax(-1) * keys
            return self.head((keys.mean(-1, keepdim=True).softmax(1) * gated).sum(1))

    x = embeddings().requires_grad_()
    model = Gated(None)

    def held(x):
        _, keys, values = model.into(x).split([1, WIDTH, WIDTH], -1)
        weights = keys.mean(-1, keepdim=True).softmax(1).detach()
        return model.head((weights * values.softmax(-1) * keys).sum(1))

    expected = x * torch.autograd.grad(held(x)[:, 1].sum(), x)[0]
    torch.testing.assert_close(ConservativeLRP(model).attribute(x, 1), expected.detach())


@pytest.mark.parametrize("model", [LinearAttention, WeightedTokens])
@pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout, RawAttention])
def test_methods_with_maps_say_what_they_have_seen(method, model):
    seen = "matmul" if model is LinearAttention else "mul"
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    for attribute in (method(model()).attribute, method(model()).attribute_tokens):
        with pytest.raises(NoAttentionError, match=rf"mix tokens.*: `{seen}` on .*no maps from"):
            attribute(x, 0)


def test_without_a_softmax_there_are_no_weights_to_hold():
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with pytest.raises(NoAttentionError, match=r"`matmul` on .*Which of their factors .*AttnLRP"):
        ConservativeLRP(LinearAttention()).attribute(x, 0)
    found = ConservativeLRP(LinearAttention(), attention_rule=False).attribute(x, 0)
    (gradient,) = torch.autograd.grad(LinearAttention()(x.requires_grad_())[:, 0].sum(), x)
    torch.testing.assert_close(found, (x * gradient).detach())


class Kernelised(nn.Module):
    """Linear attention with a kernel in the place of the softmax, as in EfficientViT."""

    def __init__(self, width=WIDTH):
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Linear(width, 3 * width, bias=False)
        self.head = nn.Linear(width, CLASSES, bias=False)
        self.double()

    def forward(self, x):
        q, k, v = self.into(x).chunk(3, -1)
        q, k = q.relu(), k.relu()
        out = q @ (k.mT @ v) / (q @ k.sum(1)[..., None] + 1e-6)
        return self.head(out.mean(1))


def test_relevance_goes_on_through_kernels_in_full():
    # Wide enough for each output to have a positive part: relevance without one is dropped.
    relevance = full_lrp(Kernelised(32)).attribute(embeddings(width=32), 1)
    torch.testing.assert_close(relevance.sum((1, 2)), torch.ones(2, dtype=torch.float64))


def test_each_factor_of_linear_attention_gets_its_part():
    model, x = Kernelised(), embeddings()
    leaf = x.clone().requires_grad_()
    q, k, v = model.into(leaf).chunk(3, -1)
    q, k = q.relu(), k.relu()
    norm = (q @ k.sum(1)[..., None] + 1e-6).detach()
    # Of a product each factor gets half: a half for q, a quarter each for k and v.
    parts = [
        q @ (k.mT @ v).detach() / 2,
        q.detach() @ (k.mT @ v.detach()) / 4,
        q.detach() @ (k.mT.detach() @ v) / 4,
    ]
    score = model.head((sum(parts) / norm).mean(1))[:, 1].sum()
    expected = (x * torch.autograd.grad(score, leaf)[0]).detach()
    torch.testing.assert_close(AttnLRP(model).attribute(x, 1), expected)


def test_weights_that_are_not_known_beside_attention_are_warned_of():
    class Hybrid(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.attention = nn.Linear(8, 24), nn.Linear(8, 24)
            self.double()

        def forward(self, x):
            q, k, v = self.linear(x).chunk(3, -1)
            x = x + q @ (k.mT @ v)
            q, k, v = self.attention(x).chunk(3, -1)
            return (x + (q @ k.mT).softmax(-1) @ v).mean(1)

    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"held constant, and other products.*`matmul`"):
        ConservativeLRP(Hybrid()).attribute(x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConservativeLRP(Hybrid(), attention_rule=False).attribute(x, 0)
        AttnLRP(Hybrid()).attribute(x, 0)
