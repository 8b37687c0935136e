"""Which words make two sentences similar?"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.study.bootstrap import Score
from benchmarks.study.data import similarity
from benchmarks.study.methods import PAIRS, RANDOM
from benchmarks.study.models import MeanOfTokens, device, parameters
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.training import Trained, trained

NAME, SAMPLES, SEEDS = "similarity", 200, 3
EPOCHS = 1
TRAINING, BATCH = 9600, 64


def train(models: Path, seed: int, *, epochs: int | None = None) -> Trained:
    """An encoder whose cosine says whether two sentences are about the same animal."""

    def loader() -> DataLoader[tuple[Tensor, ...]]:
        animals = torch.randint(similarity.ANIMALS, (TRAINING,))
        return DataLoader(TensorDataset(animals), BATCH, shuffle=True)

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        (animals,) = batch
        same = (animals[:, None] == animals).float()
        return F.mse_loss(cosines(model, animals), same)

    def measure(model: nn.Module) -> dict[str, float]:
        animals = torch.arange(1000, device=next(model.parameters()).device) % similarity.ANIMALS
        same = animals[:, None] == animals
        return {"accuracy": ((cosines(model, animals) > 0.5) == same).double().mean().item()}

    return trained(
        models / f"{NAME}-{seed}.pt", lambda: MeanOfTokens(similarity.SIZE), loader, loss, measure,
        epochs=epochs or EPOCHS, learning_rate=3e-3, seed=seed,
    )  # fmt: skip


def cosines(model: nn.Module, animals: Tensor) -> Tensor:
    """Of each sentence with each of another batch about the same animals."""
    ids = (similarity.about(animals.cpu()).ids.to(animals.device) for _ in range(2))
    one, other = (F.normalize(model(each)) for each in ids)
    return one @ other.T


def subject(
    data: Path,  # noqa: ARG001 - as of the other tasks
    models: Path,
    samples: int,
    epochs: int | None = None,
    seed: int = 0,
) -> Subject:
    """Pairs of sentences that are about the same animal: the pair of its names decides."""
    model, held_out, seconds = train(models, seed, epochs=epochs)
    model.to(device())
    one, other = similarity.draw(samples, 1000 + seed)

    def explained(method: str) -> Maps:
        return {"pairs": PAIRS[method](model, one.ids.to(device()), other.ids.to(device()))}

    def chance() -> Maps:
        size = (samples, similarity.LENGTH, similarity.LENGTH)
        return {"pairs": torch.rand(size, generator=torch.Generator().manual_seed(0))}

    methods: dict[str, Callable[[], Maps]] = {name: partial(explained, name) for name in PAIRS}
    return Subject(
        NAME,
        state_of(model, torch.cat([one.ids, other.ids])),
        {
            "model": f"BERT, 2 layers, {parameters(model):,} parameters, the mean of its tokens",
            "held-out accuracy": (
                f"{held_out['accuracy']:.1%} of the pairs have a cosine on the right side of a half"
            ),
            "training": f"{seconds:.0f} s",
            "samples": (
                f"{samples} pairs of sentences about the same animal for each model, "
                f"{similarity.LENGTH**2} pairs of words in each"
            ),
        },
        methods | {RANDOM: chance},
        {"pairs of words": partial(measured, one=one, other=other)},
        seed=seed,
    )


def measured(maps: Maps, one: similarity.Sentences, other: similarity.Sentences) -> Measured:
    """Whether the two names have the most relevance of all pairs, and how much they have."""
    relevance = maps["pairs"].flatten(1).double()
    planted = similarity.LENGTH * one.place + other.place
    positive = relevance.clamp(min=0)
    share = positive.gather(1, planted[:, None])[:, 0] / positive.sum(1).clamp_min(1e-30)
    most = relevance.argmax(1) == planted
    return Measured(
        {
            "the names have most": Score.of((100.0 * most).tolist()),
            "their share of positive relevance": Score.of((100 * share).tolist()),
        },
        {},
    )
