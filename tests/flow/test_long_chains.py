"""Tokens that are written one at a time, or moved many times: chains longer than Python's stack."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import AttentionRollout, GenericAttentionRelevance, TransformerAttribution

TOKENS = 170


class Model(nn.Module):
    """Attention and a linear layer, then a mean over all tokens.

    Args:
        join: makes the tokens from which the mean is taken.
    """

    def __init__(self, join):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.join = join

    def forward(self, x):
        x = x + self.attention(x, x, x)[0]
        return self.head(self.join(self.layer, x).mean(1))


def one_at_a_time(layer, x):
    out = torch.zeros_like(x)
    for token in range(x.shape[1]):
        out[:, token] += layer(x[:, token])
    return out


def moved_back_and_forth(layer, x):
    padded = F.pad(x, (0, 0, 1, 1))
    for _ in range(3 * TOKENS):
        padded = padded.flip(1)
    return layer(padded)


CHAINS = {
    "written": (one_at_a_time, lambda layer, x: layer(x)),
    "moved": (moved_back_and_forth, lambda layer, x: layer(F.pad(x, (0, 0, 1, 1)))),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    "method", [AttentionRollout, GenericAttentionRelevance, TransformerAttribution]
)
def test_hundreds_of_steps_give_the_map_of_one(method, chain):
    torch.manual_seed(0)
    x = torch.randn(1, TOKENS, 4)
    many, one = (method(Model(join).eval()).attribute(x, target=0) for join in CHAINS[chain])
    torch.testing.assert_close(many, one)
