"""Relevance that bypasses attention is computed separately, and left out by default."""

from functools import partial

import pytest
import torch
from torch import nn

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from tests.attr.subjects import as_tuple, subject
from tests.flow.models import TOKENS, WIDTH, LastToken, MeanPooled, Model

METHODS = {
    "TransformerAttribution": TransformerAttribution,
    "TransformerAttribution, normalised": partial(TransformerAttribution, normalize_rows=True),
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "AttentionRollout": AttentionRollout,
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@each_method
@pytest.mark.parametrize(
    "name", ["timm ViT", "timm DeiT, distilled", "torchvision ViT", "pixels and ids"]
)
def test_it_ends_at_a_learned_class_token_where_nothing_changes(name, method):
    maps = subject(name).attribute(method)
    whole = subject(name).attribute(lambda model: method(model, with_identity=True))
    for one, other in zip(as_tuple(maps), as_tuple(whole), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("model", [MeanPooled, Model, LastToken])
@pytest.mark.parametrize("paper", [GenericAttentionRelevance, TransformerAttribution])
def test_an_answer_that_is_tiny_beside_it_is_exact_in_single_precision(paper, model):
    """Far below the rounding of what passes no attention."""
    model, x = model(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    method = paper(lambda x: model(x) * 1e-9)
    exact = method.attribute_tokens(x, 1)
    assert 0 < exact.amax() < 1e-8
    model.float()
    found = method.attribute_tokens(x.float(), 1)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-6 * float(exact.amax()))


@pytest.mark.parametrize("model", [MeanPooled, Model, LastToken])
def test_it_is_no_part_of_half_precision_either(model):
    model, x = model(), torch.randn(4, TOKENS, WIDTH, dtype=torch.float64)
    model.head.weight.data *= 1e-6
    exact = GenericAttentionRelevance(model).attribute_tokens(x, 1)
    found = GenericAttentionRelevance(model.bfloat16()).attribute_tokens(x.bfloat16(), 1).double()
    assert torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1] > 0.99
    assert (found - exact).abs().amax() < 0.05 * exact.amax()


def test_it_is_left_out_of_some_tokens_of_a_mean_and_not_of_others():
    """A mean over a class token and patches: the class token leads to no input but by attention."""

    class Joined(Model):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 1, WIDTH, dtype=torch.float64))

        def forward(self, x, maps=None):
            return super().forward(torch.cat([self.token.expand(len(x), -1, -1), x], 1), maps)

        def read(self, x):
            return self.head((x[:, 0] + x[:, 1:].mean(1)) / 2)

    model, x = Joined(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    maps = []
    gradients = torch.autograd.grad(model(x, maps)[:, 1].sum(), maps)
    relevance = torch.eye(1 + TOKENS, dtype=x.dtype)
    for weights, gradient in zip(maps, gradients, strict=True):
        relevance = relevance + (weights * gradient).relu().mean(1) @ relevance
    row = torch.tensor([0.5] + TOKENS * [0.5 / TOKENS], dtype=x.dtype)
    found = GenericAttentionRelevance(model, pooled_evidence=False).attribute_tokens(x, 1)
    expected = (row @ (relevance - torch.eye(1 + TOKENS, dtype=x.dtype)))[:, 1:]
    torch.testing.assert_close(found, expected)


class Reader(nn.Module):
    """Words that attend to a picture, and not to each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, words, regions):
        return self.head((words + self.attend(words, regions, regions)[0]).mean(1))


@pytest.mark.parametrize("propagation", ["paper", "flow"])
def test_an_input_may_have_nothing_else(propagation):
    words, regions = torch.randn(2, TOKENS, WIDTH), torch.randn(2, 4, WIDTH)
    model = Reader()
    method = GenericAttentionRelevance(model, propagation=propagation)
    of_words, of_regions = method.attribute((words, regions), 1)
    assert not of_words.any()
    alone = type(method)(lambda regions: model(words, regions), propagation=propagation)
    torch.testing.assert_close(alone.attribute(regions, 1), of_regions)
    whole = GenericAttentionRelevance(model, propagation=propagation, with_identity=True)
    of_words, _ = whole.attribute_tokens((words, regions), 1)
    torch.testing.assert_close(of_words, torch.full((2, TOKENS), 1 / TOKENS))
