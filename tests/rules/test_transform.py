"""Fourier transforms, which mix tokens without attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import AttentionRollout, AttnLRP, ConservativeLRP, TransformerAttribution
from captum_transformer.errors import NoAttentionError, UnsupportedOperationError

TOKENS, WIDTH = 5, 4
X = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def matrix(size: int) -> Tensor:
    """Of the transform of a signal of this size."""
    steps = torch.arange(size, dtype=torch.float64)
    return torch.exp(-2j * torch.pi * steps[:, None] * steps / size)


class Mixer(nn.Module):
    """Two layers of FNet; the transform is torch's, or written out."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2)).double()

    def mixed(self, x: Tensor) -> Tensor:
        if self.fused:
            return torch.fft.fftn(x, dim=(1, 2)).real
        along_tokens, along_features = matrix(TOKENS), matrix(WIDTH)
        real = along_tokens.real @ x @ along_features.real
        return real - along_tokens.imag @ x @ along_features.imag

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.layer_norm(x + self.mixed(x), (WIDTH,))
            x = x + F.relu(layer(x))
        return x.mean(1)


@pytest.mark.parametrize("method", [ConservativeLRP, AttnLRP])
def test_gradients_pass_fourier_transforms(method):
    relevance = method(Mixer()).attribute(X, target=2)
    # Without attention the matrix products alone would be refused.
    plain = {} if method is AttnLRP else {"attention_rule": False}
    if plain:
        expected = method(Mixer(fused=False), **plain).attribute(X, target=2)
        torch.testing.assert_close(relevance, expected)
    torch.testing.assert_close(relevance.sum((1, 2)), Mixer()(X)[:, 2])


@pytest.mark.parametrize("method", [AttentionRollout, TransformerAttribution])
def test_methods_of_attention_say_that_tokens_are_mixed_without_it(method):
    with pytest.raises(NoAttentionError, match=r"Fourier transforms: `fft_fftn`.*ConservativeLRP"):
        method(Mixer()).attribute(X, target=2)


class Mixed(Mixer):
    """Attention in front of a transform."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + F.scaled_dot_product_attention(x, x, x))


@pytest.mark.parametrize("full", [False, True])
def test_transforms_beside_attention_are_refused(full):
    with pytest.raises(UnsupportedOperationError, match="fft_fftn"):
        TransformerAttribution(Mixed(), propagate_to_input=full).attribute(X, target=2)
