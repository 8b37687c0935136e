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
from captum_transformer.errors import (
    InvalidInputError,
    NoAttentionError,
    UnseenOperationError,
    UnsupportedOperationError,
)

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
def test_operations_that_mix_tokens_before_attention_are_named(
    method: Any, name: str, prepared: Any
) -> None:
    with pytest.raises(UnsupportedOperationError, match=f"`{name}`.* mixes a signal"):
        method(Attending(prepared)).attribute(tokens(), 1)


@methods
def test_pixels_are_floating_point(method: Any) -> None:
    pixels = (tokens().clamp(-1, 1) * 100 + 120).byte()
    with pytest.raises(InvalidInputError, match="Integers, as in 'x', are treated as token ids"):
        method(Attending(lambda x: x.double() / 255)).attribute(pixels, 1)
    method(Attending(lambda x: x / 255)).attribute(pixels.double(), 1)


@methods
@pytest.mark.parametrize("of", [lambda i: i, lambda i: [i, i], lambda i: (i,)])
def test_integers_of_numpy_are_targets(method: Any, of: Any) -> None:
    explained = method(Attending(torch.tanh))
    found = explained.attribute(tokens(), of(np.int64(1)))
    torch.testing.assert_close(found, explained.attribute(tokens(), 1))


def cut_off(x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.scaled_dot_product_attention(x, x, x)


def in_numpy(x: Tensor) -> Tensor:
    """A kernel that neither torch functions nor autograd see."""
    values = x.detach().numpy()
    scores = np.exp(values @ values.transpose(0, 2, 1))
    return torch.from_numpy(scores / scores.sum(-1, keepdims=True) @ values)


class Without(nn.Module):
    """Tokens of a model in which nothing attends, but for what is cut off from them."""

    def __init__(self, mixed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixed, self.head = mixed, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.mixed(x)).mean(1))


@methods
@pytest.mark.parametrize(
    "mixed",
    [
        cut_off,
        in_numpy,
        lambda x: F.avg_pool1d(x.mT, 3, 1, 1).mT,
    ],
)
def test_attention_that_no_input_reaches_is_no_attention(method: Any, mixed: Any) -> None:
    with pytest.raises(NoAttentionError, match=r"cut off from the inputs, by .* `torch.no_grad"):
        method(Without(mixed)).attribute(tokens().float(), 1)


class Recomputed(torch.autograd.Function):
    """A checkpoint of a library's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.scaled_dot_product_attention(x, x, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return torch.autograd.functional.vjp(Without(cut_off).mixed, x, gradients[0])[1]


@methods
def test_attention_that_is_hidden_is_said_to_be_hidden(method: Any) -> None:
    with pytest.raises(UnseenOperationError, match=r"by `torch.utils.checkpoint`"):
        method(Without(Recomputed.apply)).attribute(tokens().float(), 1)


def test_a_model_without_attention_is_explained_as_advised() -> None:
    with pytest.raises(NoAttentionError, match=r"convolutional .*attention_rule=False"):
        ConservativeLRP(Without(torch.tanh)).attribute(tokens().float(), 1)
    explained = ConservativeLRP(Without(torch.tanh), attention_rule=False)
    assert explained.attribute(tokens().float(), 1).abs().sum() > 0


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_not_advised(layer: Any) -> None:
    torch.manual_seed(0)
    recurrent = layer(8, 8, batch_first=True)
    model = Without(lambda x: recurrent(x)[0])
    with pytest.raises(NoAttentionError, match=r"`nn.LSTM`, `nn.GRU`\) can't"):
        ConservativeLRP(model).attribute(tokens().float(), 1)
    with pytest.raises(UnsupportedOperationError, match=layer.__name__.lower()):
        ConservativeLRP(model, attention_rule=False).attribute(tokens().float(), 1)
