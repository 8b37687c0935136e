"""Rotary embeddings by complex numbers have the account that they have by pairs of real ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)

WIDTH, TOKENS = 8, 4
ANGLES = torch.arange(TOKENS, dtype=torch.float64)[:, None] / torch.tensor([1.0, 2, 3, 4])
TURNS = torch.polar(torch.ones_like(ANGLES), ANGLES)


def by_complex(x):
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * TURNS).flatten(-2)


def by_pairs(x):
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = [
        real * ANGLES.cos() - imaginary * ANGLES.sin(),
        real * ANGLES.sin() + imaginary * ANGLES.cos(),
    ]
    return torch.stack(turned, -1).flatten(-2)


class Model(nn.Module):
    def __init__(self, rotate, *, tokens=False):
        super().__init__()
        torch.manual_seed(0)
        self.rotate, self.tokens = rotate, tokens
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)
        self.double()

    def forward(self, x):
        x = self.rotate(x) if self.tokens else x
        query, key, value = self.qkv(x).chunk(3, -1)
        query, key = (t if self.tokens else self.rotate(t) for t in (query, key))
        return self.head(x[:, 0] + F.scaled_dot_product_attention(query, key, value)[:, 0])


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(
    "method", [AttnLRP, ConservativeLRP, GenericAttentionRelevance, TransformerAttribution]
)
def test_account(method, tokens):
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    found = method(Model(by_complex, tokens=tokens)).account(x, target=1)
    total = sum(part.amount.sum() for part in found.parts)
    torch.testing.assert_close(total, found.total.sum(), rtol=1e-4, atol=1e-6)
    if method in (ConservativeLRP, GenericAttentionRelevance):
        expected = method(Model(by_pairs, tokens=tokens)).account(x, target=1)
        torch.testing.assert_close(found.of("inputs"), expected.of("inputs"))
