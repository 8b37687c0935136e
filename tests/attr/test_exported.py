"""Models that `torch.export` made: kernels in the place of torch's functions, the same maps."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)

METHODS: dict[str, Callable[..., Any]] = {
    "AttentionRollout": AttentionRollout,
    "AttnLRP": AttnLRP,
    "ConservativeLRP": ConservativeLRP,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "TransformerAttribution": TransformerAttribution,
    "full LRP": lambda model: TransformerAttribution(model, propagate_to_input=True),
}

# What makes tokens (samples, 4, 8) of images (samples, 4, 8, 8), or of tokens.
STEMS: dict[str, Callable[[], nn.Module]] = {
    "strides": lambda: nn.Conv2d(4, 8, 4, 4),
    "a stem": lambda: nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1, groups=4)
    ),
    "same padding": lambda: nn.Sequential(
        nn.Conv2d(4, 8, 3, padding="same"), nn.GroupNorm(2, 8), nn.SiLU(), nn.AvgPool2d(4)
    ),
    "dilation": lambda: nn.Sequential(
        nn.Conv2d(4, 8, 3, dilation=2, padding=2), nn.Hardswish(), nn.MaxPool2d(4)
    ),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(4, 8, 4, 4), nn.ConvTranspose2d(8, 8, 2, 2), nn.AdaptiveAvgPool2d(2)
    ),
}


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / 2
    return torch.einsum("bhqk,bhkd->bhqd", F.softmax(scores, dim=-1), v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(4, 4, dtype=torch.bool).tril(1)
    scores = (q @ k.mT).masked_fill(~mask, float("-inf"))
    return F.softmax(scores, -1).matmul(v)


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "fused": F.scaled_dot_product_attention,
    "causal": causal,
    "explicit": explicit,
    "by einsum": by_einsum,
    "masked": masked,
}


class Model(nn.Module):
    def __init__(self, stem: nn.Module, attend: Callable[..., Tensor] = explicit) -> None:
        super().__init__()
        self.stem, self.attend = stem, attend
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(-1, 4, 8))
        x = x + self.mlp(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(x[:, 0] + x[:, 1:].mean(dim=1))


def exported(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, nn.Module]:
    """The model with random weights, and what `torch.export` makes of it."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    model = model.double().eval()
    return model, torch.export.export(model, (inputs,)).module()


def same_maps(models: tuple[nn.Module, ...], inputs: Tensor, method: Callable[..., Any]) -> None:
    expected, found = (method(model).attribute(inputs, 1) for model in models)
    torch.testing.assert_close(found, expected)


@cache
def of_images(stem: str, attention: str) -> tuple[tuple[nn.Module, nn.Module], Tensor]:
    """A model, its export and its inputs, once for all methods."""
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    return exported(Model(STEMS[stem](), ATTENTION[attention]), images), images


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("stem", STEMS)
def test_stems(stem: str, method: Callable[..., Any]) -> None:
    same_maps(*of_images(stem, "explicit"), method)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_attention(attention: str, method: Callable[..., Any]) -> None:
    same_maps(*of_images("strides", attention), method)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_token_ids(method: Callable[..., Any]) -> None:
    torch.manual_seed(0)

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(ids))[:, -1])

    ids = torch.randint(9, (2, 5))
    same_maps(exported(Text(), ids), ids, method)
