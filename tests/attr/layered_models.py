"""Models whose layers are explained."""

from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import ConservativeLRP, TransformerAttribution, TransformerMethod
from tests.attr.tiny_models import with_random_weights

Make = Callable[[Any], TransformerMethod]


def plain_gradient(model: Any) -> ConservativeLRP:
    return ConservativeLRP(model, attention_rule=False, layer_norm_rule=False)


def full_lrp(model: Any) -> TransformerAttribution:
    return TransformerAttribution(model, propagate_to_input=True)


def vit(**arguments: Any) -> Any:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, num_classes=4, **arguments
    )
    return with_random_weights(model)


def images(samples: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(samples, 3, 32, 32, dtype=torch.float64)


class WritesInPlace(nn.Module):
    """The residual stream is one tensor that all layers write into."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        x += self.attend(2 * x, 2 * x, 2 * x, need_weights=False)[0]
        x += F.gelu(self.layers[1](2 * x))
        return self.layers[2](x).mean(1)


class WritesIntoView(WritesInPlace):
    """The output of a layer is a view of a tensor that the model writes into later."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.turn(self.layers[0](x).unsqueeze(-1))
        x += self.attend(2 * x, 2 * x, 2 * x, need_weights=False)[0]
        return self.layers[2](x).mean(1)


class Twice(nn.Module):
    """One layer runs twice, one has no effect on the score, and one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.beside, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.constant = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.shared(F.gelu(self.shared(x))) + self.constant(torch.ones(1, 4, dtype=x.dtype))
        return x[:, :3], self.beside(x)


class TokensFirst(nn.Module):
    """Its layer has the samples in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1)).mean(0))
