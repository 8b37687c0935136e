"""Pooling by softmax weights, as a product that is summed up and as a product of matrices."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    describe,
)
from captum_transformer.errors import UnsupportedOperationError
from tests.flow.models import TOKENS, WIDTH, Model

METHODS = [
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
]


WRITINGS = {
    "weights first": lambda s, h: (s.softmax(1) * h).sum(1),
    "tokens first": lambda s, h: (h * s.softmax(dim=1)).sum(dim=1),
    "keeping the dimension": lambda s, h: (s.softmax(1) * h).sum(1, keepdim=True).squeeze(1),
    "weights without features": lambda s, h: (s.squeeze(-1).softmax(-1)[..., None] * h).sum(-2),
    "features first": lambda s, h: (h.mT * s.mT.softmax(-1)).sum(-1),
    "tokens before samples": lambda s, h: (s.transpose(0, 1).softmax(0) * h.transpose(0, 1)).sum(0),
    "repeated": lambda s, h: (s.softmax(1).expand_as(h) * h).sum(1),
    "einsum": lambda s, h: torch.einsum("bn,bnd->bd", s[..., 0].softmax(-1), h),
    "function": lambda s, h: torch.sum(torch.mul(s.softmax(1), h), 1),
}


class Pooled(Model):
    """A common head of sentence encoders."""

    def __init__(self, pool) -> None:
        super().__init__()
        self.scores = nn.Linear(WIDTH, 1).double()
        self.pool = pool

    def read(self, x):
        return self.head(self.pool(self.scores(x), x))


def product(s: Tensor, h: Tensor) -> Tensor:
    return (s.softmax(1).mT @ h).squeeze(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("writing", WRITINGS)
def test_a_weighted_sum_is_a_product_of_matrices(writing, method):
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    found, expected = (
        method(Pooled(pool)).attribute(x, 1) for pool in (WRITINGS[writing], product)
    )
    torch.testing.assert_close(found, expected)
    assert found.any() or method is AttentionGradCam


def test_weights_of_each_feature_by_itself_are_as_heads():
    """As in attentive statistics pooling: each feature has weights of its own."""

    class PerFeature(Model):
        def read(self, x, maps=None):
            weights = self.blocks[0].out(x).softmax(1)
            if maps is not None:
                maps.append(weights)
            return self.head((weights * x).sum(1))

    model, x = PerFeature(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    maps: list[Tensor] = []
    h = x
    for block in model.blocks:
        h, weights = model.block(block, h)
        maps.append(weights)
    score = model.read(h, maps)[:, 2].sum()
    gradients = torch.autograd.grad(score, maps)
    eye = torch.eye(TOKENS, dtype=x.dtype)
    relevance = eye
    *layers, (weights, gradient) = zip(maps, gradients, strict=True)
    for a, g in layers:
        relevance = relevance + (a * g).relu().mean(1) @ relevance
    row = (weights * gradient).relu().mean(-1)
    expected = (row[:, None] @ relevance)[:, 0]
    torch.testing.assert_close(GenericAttentionRelevance(model).attribute_tokens(x, 2), expected)


def test_it_is_described_as_attention():
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    seen = describe(Pooled(WRITINGS["weights first"]), x)
    assert [call.shape for call in seen.attention][-1] == (2, 1, TOKENS)
    assert seen.unread == ()


def test_a_context_that_all_tokens_get_counts_as_attention():
    """As in MobileViTv2: one weighted sum of all tokens, which gates each of them."""

    class Context(Model):
        def block(self, block, x, maps=None):
            q, k, v = block.qkv(block.norm(x)).chunk(3, -1)
            weights = q[..., :1].softmax(1)
            context = (weights * k).sum(1, keepdim=True)
            return x + block.out(context * v), weights

    model, x = Context(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    maps: list[Tensor] = []
    score = model(x, maps)[:, 2].sum()
    relevance = torch.eye(TOKENS, dtype=x.dtype)
    for weights, gradient in zip(maps, torch.autograd.grad(score, maps), strict=True):
        row = (weights * gradient).relu().mT.expand(-1, TOKENS, -1)
        relevance = relevance + row @ relevance
    found = GenericAttentionRelevance(model, with_identity=True).attribute_tokens(x, 2)
    torch.testing.assert_close(found, relevance[:, 0].detach())


class Crossing(nn.Module):
    """Tokens of one input attend to those of another one."""

    def __init__(self, multiply, softmax=lambda scores: scores.softmax(-1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.of_query, self.of_key, self.of_value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head, self.multiply, self.softmax = nn.Linear(WIDTH, 3), multiply, softmax
        self.double()

    def forward(self, x, y):
        weights = self.softmax(self.of_query(x) @ self.of_key(y).mT)
        return self.head((x + self.multiply(weights, self.of_value(y))).mean(1))


@pytest.mark.parametrize("method", METHODS)
def test_attention_of_several_queries_as_a_sum_is_the_product(method):
    """Its queries and keys are dimensions of one product."""
    inputs = torch.rand(2, TOKENS, WIDTH).double(), torch.rand(2, TOKENS - 1, WIDTH).double()
    expected, *others = (
        method(Crossing(multiply)).attribute(inputs, target=1)
        for multiply in (
            torch.matmul,
            lambda p, v: (p[..., None] * v[:, None]).sum(2),
            lambda p, v: (v.mT[:, None] * p.unsqueeze(2)).sum(-1),
            lambda p, v: (p[..., None] * v[:, None]).sum(2, keepdim=True).squeeze(2),
            lambda p, v: (v[:, None] * p[..., None]).sum(2, keepdim=True).squeeze(2),
            lambda p, v: (
                p[..., None].expand(-1, -1, -1, WIDTH) * v[:, None].expand(-1, TOKENS, -1, -1)
            ).sum(2),
        )
    )
    for found in others:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_a_refusal_of_the_weights_is_not_lost_where_the_product_is_summed_up():
    """GIM has no rule for a softmax that is written by hand."""
    by_hand = Crossing(
        lambda p, v: (p[..., None] * v[:, None]).sum(2),
        lambda scores: scores.exp() / scores.exp().sum(-1, keepdim=True),
    )
    inputs = torch.rand(2, TOKENS, WIDTH).double(), torch.rand(2, TOKENS - 1, WIDTH).double()
    with pytest.raises(UnsupportedOperationError, match="softmax of its weights is written"):
        GIM(by_hand).attribute(inputs, target=1)
