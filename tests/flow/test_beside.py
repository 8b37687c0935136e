"""Zeros beside a signal have no share, and operations beside a skip count as the skip."""

import pytest
import torch
from torch import Tensor

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    RawAttention,
    TransformerAttribution,
    describe,
)
from tests.flow.one_block import TOKENS, WIDTH, Model

METHODS = [AttentionRollout, GenericAttentionRelevance, RawAttention, TransformerAttribution]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)


DIAGONAL = {
    "diag_embed": lambda x, w: torch.diag_embed(x) @ w,
    "a product with ones on the diagonal": lambda x, w: (x[:, None] * torch.eye(TOKENS).to(x)) @ w,
    "diagonals one by one": lambda x, w: torch.stack([torch.diagflat(row) for row in x]) @ w,
    "triangles": lambda x, w: x[:, None].repeat(1, TOKENS, 1).tril().triu() @ w,
    "a linear layer": lambda x, w: torch.nn.functional.linear(torch.diag_embed(x), w.T),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spelling", DIAGONAL)
def test_zeros_beside_a_number_have_nothing(method, spelling, x):
    numbers, weights = x[:, :, 0], x[0].detach()

    def tokens(spelled):
        return method(Model(lambda _, x: spelled(x, weights))).attribute(numbers, 1)

    expected = tokens(lambda x, w: x[..., None] * w)
    torch.testing.assert_close(tokens(DIAGONAL[spelling]), expected)


BESIDE_A_SKIP = {
    "convolution": lambda x, w: (
        x + torch.nn.functional.conv1d(x.mT, w[:, :, None].repeat(1, 1, 3), padding=1).mT
    ),
    "neighbours": lambda x, w: (
        x + torch.nn.functional.conv1d(x.mT, torch.ones(WIDTH, 1, 3).to(x), None, 1, 1, 1, WIDTH).mT
    ),
    "roll": lambda x, w: x + x.roll(1, 1),
    "mixer": lambda x, w: x + w[:TOKENS, :TOKENS] @ (x @ w),
}


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("spelling", BESIDE_A_SKIP)
def test_tokens_moved_beside_a_skip_count_unmoved(method, spelling):
    """A limit that README names: the map is that of attention to single tokens, unmoved."""
    x, w = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64), torch.eye(WIDTH).double()

    def read(change):
        class First(Model):
            def forward(self, x):
                x = change(x, w)
                return self.head((x + self.one(x, x[:, :1], x[:, :1])[0])[:, 0])

        return method(First(None)).attribute_tokens(x, 1)

    found = read(BESIDE_A_SKIP[spelling])
    assert found[:, 0].any()
    assert not found[:, 1:].any()
    seen = describe(Model(lambda _, x: BESIDE_A_SKIP[spelling](x, w)), x)
    assert len(seen.beside_skips) == 1
    assert f"not followed, beside a skip: {seen.beside_skips[0]}" in str(seen)


KEEPS_TOKENS = {
    "mlp": lambda model, x: x + model.layer(model.layer(x).relu()),
    "convolution of one": lambda model, x: x + model.convolution(x.mT).mT,
    "norm": lambda model, x: x + torch.nn.functional.layer_norm(x, (WIDTH,)),
    "windows": lambda model, x: x + model.layer(x.view(2, 3, 2, WIDTH).flatten(0, 1)).view(x.shape),
    "attention": lambda model, x: x + model.other(x, x, x)[0],
    "attention and its mixer": lambda model, x: x + model.other(x, x, x)[0].roll(1, 1),
}


@pytest.mark.parametrize("spelling", KEEPS_TOKENS)
def test_operations_that_keep_tokens_are_not_named(spelling, x):
    model = Model(KEEPS_TOKENS[spelling])
    model.layer = torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    model.convolution = torch.nn.Conv1d(WIDTH, WIDTH, 1, dtype=torch.float64)
    assert describe(model, x).beside_skips == ()
