"""Families of torchvision, and the modules of torch.nn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from benchmarks.model_matrix.family import (
    CLASSES,
    Case,
    Family,
    drawn,
    padding,
    with_random_weights,
)

_CHOICES = ([1, 4], [3, 0], [2, 2])
_SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": [4, 4],
    "num_classes": CLASSES,
}


def _pictured(make: Callable[[], nn.Module], size: int, _: str) -> Case:
    return Case(with_random_weights(make()), drawn(2, 3, size, size, seed=1), _CHOICES)


def _torchvision(
    name: str, make: Callable[..., nn.Module], size: int, options: dict[str, Any], **about: Any
) -> Family:
    build = partial(_pictured, partial(make, **options), size)
    return Family("torchvision", name, build, ("as it is",), **about)


class EncoderClassifier(nn.Module):
    """`nn.TransformerEncoder` with a mean over the tokens that are no padding."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, embeddings: Tensor, padded: Tensor) -> Tensor:
        tokens = self.encoder(embeddings, src_key_padding_mask=padded)
        kept = ~padded[..., None]
        return self.head((tokens * kept).sum(1) / kept.sum(1))


class Translator(nn.Module):
    """`nn.Transformer`: two sets of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(16, 2, 2, 2, 32, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.transformer(source, target, tgt_mask=causal))


class AttentionClassifier(nn.Module):
    """One `nn.MultiheadAttention`, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, embeddings: Tensor, padded: Tensor) -> Tensor:
        tokens = embeddings.transpose(0, 1)
        attended, _ = self.attention(tokens, tokens, tokens, key_padding_mask=padded)
        return self.head((tokens + attended)[0])


def _embedded(make: Callable[[], nn.Module], _: str) -> Case:
    inputs = {"embeddings": drawn(2, 7, 16, seed=3)}
    return Case(with_random_weights(make()), inputs, _CHOICES, {"padded": padding() == 0})


def _translated(_: str) -> Case:
    inputs = {"source": drawn(2, 7, 16, seed=3), "target": drawn(2, 4, 16, seed=4)}
    return Case(with_random_weights(Translator()), inputs, ([(3, 1), (2, 4)], [(3, 0), (2, 2)]))


def _module(name: str, build: Callable[[str], Case], **about: Any) -> Family:
    return Family("torch.nn", name, build, ("as it is",), **about)


TORCHVISION = [
    _torchvision(
        "ViT",
        models.VisionTransformer,
        16,
        {
            "image_size": 16,
            "patch_size": 4,
            "num_layers": 2,
            "num_heads": 2,
            "hidden_dim": 16,
            "mlp_dim": 32,
            "num_classes": CLASSES,
        },
    ),
    _torchvision("Swin", models.SwinTransformer, 32, _SWIN),
    _torchvision(
        "SwinV2",
        models.SwinTransformer,
        32,
        {
            **_SWIN,
            "block": models.swin_transformer.SwinTransformerBlockV2,
            "downsample_layer": models.swin_transformer.PatchMergingV2,
        },
    ),
    _torchvision(
        "MaxViT",
        models.MaxVit,
        64,
        {
            "input_size": (64, 64),
            "stem_channels": 8,
            "block_channels": [8, 16],
            "block_layers": [1, 1],
            "head_dim": 4,
            "stochastic_depth_prob": 0.0,
            "partition_size": 4,
            "num_classes": CLASSES,
        },
        not_conserved="squeeze-and-excitation multiplies two signals",
    ),
]
TORCH = [
    _module("TransformerEncoder", partial(_embedded, EncoderClassifier), kind="torch.nn"),
    _module(
        "TransformerEncoder, norm first",
        partial(_embedded, partial(EncoderClassifier, norm_first=True)),
    ),
    _module("Transformer", _translated),
    _module("MultiheadAttention", partial(_embedded, AttentionClassifier)),
]
