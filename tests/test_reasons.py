"""Reasons that errors give: they name what is in the way, and what they advise helps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.errors import InvalidInputError, UnsupportedOperationError

METHODS = {
    "AttentionRollout": AttentionRollout,
    "ConservativeLRP": ConservativeLRP,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "full LRP": lambda model: TransformerAttribution(model, propagate_to_input=True),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Attending(nn.Module):
    """Tokens of pixels attend to each other after something was done to the pixels."""

    def __init__(self, prepared: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prepared, self.head = prepared, nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepared(x)
        return self.head((x + F.scaled_dot_product_attention(x, x, x))[:, 0])


def tokens() -> Tensor:
    return torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@methods
@pytest.mark.parametrize(
    ("name", "prepared"),
    [
        ("complex", lambda x: torch.complex(x, 0 * x).abs()),
        ("polar", lambda x: torch.polar(x.abs(), x).real),
        (
            "exp",
            lambda x: torch.view_as_complex(x.unflatten(-1, (4, 2))).exp().abs().repeat(1, 1, 2),
        ),
        ("angle", lambda x: torch.fft.fft(x).angle()),
        ("imag", lambda x: torch.fft.fft(x).imag),
    ],
)
def test_functions_of_torch_are_refused_by_name(method: Any, name: str, prepared: Any) -> None:
    with pytest.raises(UnsupportedOperationError, match=f"`{name}`.* on tensors of shapes"):
        method(Attending(prepared)).attribute(tokens(), 1)


@pytest.mark.parametrize("method", [AttentionRollout, GenericAttentionRelevance])
@pytest.mark.parametrize(
    ("name", "prepared"),
    [
        ("fft_ifft", lambda x: torch.fft.ifft(torch.fft.fft(x, dim=1) * 0.5, dim=1).real),
        ("fft_irfft2", lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5)),
    ],
)
def test_what_mixes_tokens_before_any_attention_is_named(
    method: Any, name: str, prepared: Any
) -> None:
    with pytest.raises(UnsupportedOperationError, match=f"`{name}`.* mixes a signal"):
        method(Attending(prepared)).attribute(tokens(), 1)


@methods
def test_pixels_are_floating_point(method: Any) -> None:
    pixels = (tokens().clamp(-1, 1) * 100 + 120).byte()
    with pytest.raises(InvalidInputError, match="Integers, as in 'x', are taken for token ids"):
        method(Attending(lambda x: x.double() / 255)).attribute(pixels, 1)
    method(Attending(lambda x: x / 255)).attribute(pixels.double(), 1)


@methods
@pytest.mark.parametrize("of", [lambda i: i, lambda i: [i, i], lambda i: (i,)])
def test_integers_of_numpy_are_targets(method: Any, of: Any) -> None:
    explained = method(Attending(torch.tanh))
    found = explained.attribute(tokens(), of(np.int64(1)))
    torch.testing.assert_close(found, explained.attribute(tokens(), 1))
