"""Which digits are in this mosaic?"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.study.bootstrap import Score
from benchmarks.study.data import mosaics
from benchmarks.study.models import device, mosaic_vit, normalised, parameters
from benchmarks.study.pictures import Pictures
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.training import Trained, trained
from captum_transformer.metrics import grid_pointing_game

NAME, SAMPLES, SEEDS = "mosaics", 200, 3
EPOCHS = 10
BLACK = normalised(torch.zeros(1))
TRAINING = 10_000


Read = Callable[[str, int, int], mosaics.Mosaics]
"""From a split, a number of mosaics and a seed to mosaics."""


class Chosen(NamedTuple):
    """Mosaics that are explained: of each, one digit and the cell that it is in."""

    images: Tensor
    targets: Tensor
    cells: Tensor
    answered: str


def train(
    read: Read,
    build: Callable[[], nn.Module],
    checkpoint: Path,
    seed: int,
    *,
    epochs: int,
    learning_rate: float = 4e-3,
) -> Trained:
    """Trains a model to say which digits are in a mosaic."""

    def loader() -> DataLoader[tuple[Tensor, ...]]:
        split = read("train", TRAINING, 1)
        return DataLoader(TensorDataset(split.images, split.labels), 128, shuffle=True)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.binary_cross_entropy_with_logits(model(normalised(images)), labels)

    def measure(model: nn.Module) -> dict[str, float]:
        split = read("test", 1000, 2)
        device = next(model.parameters()).device
        images = normalised(split.images)
        scores = torch.cat([model(part.to(device)) for part in images.split(100)]).cpu()
        right = (scores > 0) == (split.labels > 0)
        return {
            "answers": right.double().mean().item(),
            "mosaics": right.all(1).double().mean().item(),
        }

    return trained(
        checkpoint, build, loader, loss, measure,
        epochs=epochs, learning_rate=learning_rate, seed=seed,
    )  # fmt: skip


def choose(model: nn.Module, read: Read, samples: int, seed: int) -> Chosen:
    """Mosaics of which the model gets all answers right, where there are enough."""
    split = read("test", 4 * samples, 3 + seed)
    with torch.no_grad():
        scores = torch.cat([model(part) for part in normalised(split.images).split(100)])
    answers = ((scores > 0) == (split.labels > 0)).sum(1)
    right = answers.argsort(dim=0, descending=True, stable=True)[:samples]
    cells = torch.arange(len(right)) % 4
    return Chosen(
        normalised(split.images[right]),
        split.digits[right].gather(1, cells[:, None])[:, 0],
        cells,
        f"{len(right)} held-out mosaics, {(answers[right] == 10).sum()} of them with all answers "
        "right; one digit of each is explained",
    )


def facts(model: str, fit: Trained, chosen: Chosen) -> dict[str, str]:
    """What a reader has to know."""
    return {
        "model": f"{model}, {parameters(fit.model):,} parameters",
        "held-out accuracy": (
            f"{fit.held_out['answers']:.1%} of the answers, {fit.held_out['mosaics']:.1%} of "
            "mosaics have all ten right"
        ),
        "training": f"{fit.seconds:.0f} s",
        "samples": chosen.answered,
    }


def subject(
    data: Path, models: Path, samples: int, epochs: int | None = None, seed: int = 0
) -> Subject:
    """The grid pointing game takes what the model is surest of."""
    read = partial(mosaics.read, data)
    fit = train(read, mosaic_vit, models / f"{NAME}-{seed}.pt", seed, epochs=epochs or EPOCHS)
    chosen = choose(fit.model, read, samples, seed)
    pictures = Pictures(fit.model, chosen.images, {"target": chosen.targets}, BLACK, device())

    def pointing(maps: Maps) -> Measured:
        shares = grid_pointing_game(maps["target"], chosen.cells)
        return Measured({"grid pointing game": Score.of((100 * shares).tolist())}, {})

    return Subject(
        NAME,
        state_of(fit.model, pictures.images),
        facts("ViT, 4 layers, 64 patches, 16 to a digit", fit, chosen),
        pictures.methods(),
        {"grid pointing game": pointing},
        seed=seed,
    )
