"""Which digits are in this mosaic, by models that differ in what their score is read from?

The mosaics are the quickstart's: digits of 8x8 pixels, so that each model trains within minutes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import SwinTransformer, VisionTransformer
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

from benchmarks.study.bootstrap import Score
from benchmarks.study.given import Logits
from benchmarks.study.methods import MERGING, POOLED
from benchmarks.study.models import device
from benchmarks.study.pictures import Pictures
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.tasks.mosaics import BLACK, choose, facts, train
from benchmarks.study.training import Trained
from captum_transformer import TransformerMethod
from captum_transformer.metrics import grid_pointing_game
from tutorials.quickstart import Mosaics, split_digits


def read(split: str, count: int, seed: int) -> Mosaics:
    """About ``count`` mosaics of digits that are in no other split."""
    training, held_out = split_digits()
    return Mosaics.draw(*(training if split == "train" else held_out), count, seed)


def vit(**pooling: Any) -> VisionTransformer:
    """For mosaics of 16x16: 16 patches, four to a digit."""
    return VisionTransformer(
        img_size=16, patch_size=4, in_chans=1, num_classes=10,
        embed_dim=64, depth=3, num_heads=8, mlp_ratio=2, **pooling,
    )  # fmt: skip


def swin() -> SwinTransformer:
    """Windows of 4x4 of 64 patches, that become 16 tokens, which are pooled."""
    return SwinTransformer(
        img_size=16, patch_size=2, in_chans=1, num_classes=10,
        embed_dim=32, depths=(2, 2), num_heads=(4, 8), window_size=4, mlp_ratio=2,
        drop_path_rate=0,
    )  # fmt: skip


def dino() -> nn.Module:
    """Its score is read from the class token, joined to the mean of the 16 patches."""
    config = Dinov2WithRegistersConfig(
        image_size=16, patch_size=4, num_channels=1, num_labels=10, num_register_tokens=4,
        hidden_size=64, num_hidden_layers=3, num_attention_heads=8, mlp_ratio=2,
        layerscale_value=0.1,
    )  # fmt: skip
    return Logits(Dinov2WithRegistersForImageClassification(config))


@dataclass(frozen=True)
class Readout:
    """A task of the study.

    Attributes:
        NAME: Of the task.
        build: Makes the model.
        model: The model in words.
        EPOCHS: How long it is trained.
        SAMPLES: How many mosaics are explained for each model.
        SEEDS: How many models there are.
        methods: This package's methods that explain it.
    """

    NAME: str
    build: Callable[[], nn.Module]
    model: str
    EPOCHS: int = 15
    SAMPLES: int = 200
    SEEDS: int = 3
    methods: Mapping[str, Callable[[Any], TransformerMethod]] = field(default_factory=POOLED.copy)

    def fit(self, models: Path, seed: int, epochs: int | None = None) -> Trained:
        """The model, which is trained if ``models`` has none."""
        return train(
            read,
            self.build,
            models / f"{self.NAME}-{seed}.pt",
            seed,
            epochs=epochs or self.EPOCHS,
            learning_rate=4e-3,
        )

    def subject(
        self,
        data: Path,  # noqa: ARG002 - the digits are scikit-learn's
        models: Path,
        samples: int,
        epochs: int | None = None,
        seed: int = 0,
    ) -> Subject:
        """Trains the model, and asks in which cell the relevance is."""
        fit = self.fit(models, seed, epochs)
        chosen = choose(fit.model, read, samples, seed)
        pictures = Pictures(
            fit.model, chosen.images, {"target": chosen.targets}, BLACK, device(), self.methods
        )
        return Subject(
            self.NAME,
            state_of(fit.model, pictures.images),
            facts(self.model, fit, chosen),
            pictures.methods(),
            {"grid pointing game": partial(pointing, cells=chosen.cells)},
            seed=seed,
        )


def pointing(maps: Maps, cells: Tensor) -> Measured:
    """The share of positive relevance in the right cell, and whether it has more than any other."""
    relevance = maps["target"]
    every = torch.stack(
        [grid_pointing_game(relevance, torch.full_like(cells, c)) for c in range(4)]
    )
    best = every.argmax(0) == cells
    shares = every.gather(0, cells[None])[0]
    return Measured(
        {
            "share in the right cell": Score.of((100 * shares).tolist()),
            "right cell has most": Score.of((100.0 * best).tolist()),
        },
        {},
    )


TASKS = (
    Readout("digits-class-token", vit, "ViT with a class token, 3 layers, 16 patches"),
    Readout(
        "digits-mean-pooling",
        partial(vit, global_pool="avg", class_token=False),
        "ViT, its 16 patches averaged, 3 layers",
    ),
    Readout(
        "digits-attention-pooling",
        partial(vit, global_pool="map", class_token=False),
        "ViT, its 16 patches pooled by attention, 3 layers",
        EPOCHS=40,
    ),
    Readout(
        "digits-registers",
        dino,
        "DINOv2 with four registers, 3 layers, 16 patches; class token and mean of patches",
    ),
    Readout(
        "digits-swin",
        swin,
        "Swin, 4 layers, 64 patches, 16 tokens averaged",
        methods=MERGING,
    ),
)
