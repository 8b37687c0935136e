"""Which noun does the verb agree with?"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from benchmarks.study.bootstrap import Score
from benchmarks.study.data import agreement
from benchmarks.study.methods import CAPTUM, INTEGRATION_STEPS, RANDOM, TEXT
from benchmarks.study.models import device, parameters, speaker
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.training import Trained, trained
from captum_transformer import Contrast

NAME, SAMPLES, SEEDS = "agreement", 100, 3
LAYERS = 3
EPOCHS = 20
TRAINING, OF_EPOCH = 20_000, 1280
BATCH = 64


def train(folder: Path, layers: int, seed: int, *, epochs: int | None = None) -> Trained:
    """A model of the language: it learns to say each word of a sentence after those before."""
    count = epochs or EPOCHS

    def loader() -> DataLoader[tuple[Tensor, ...]]:
        sentences = agreement.draw(TRAINING, seed=1, plain=0.4)
        known = TensorDataset(sentences.ids, sentences.last)
        return DataLoader(known, BATCH, sampler=RandomSampler(known, num_samples=OF_EPOCH))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, last = batch
        said = ids[:, 1:]
        losses = F.cross_entropy(model(ids[:, :-1]).logits.mT, said, reduction="none")
        # The verb counts as much as all words together, so that it is learned soon.
        return losses[said != agreement.END].mean() + losses.gather(1, last[:, None]).mean()

    def measure(model: nn.Module) -> dict[str, float]:
        sentences = agreement.draw(1000, seed=2)
        on = next(model.parameters()).device
        gains = contrast(model(sentences.prompts().to(on)).logits.cpu(), sentences)
        return {"accuracy": (gains > 0).double().mean().item()}

    return trained(
        folder / f"{NAME}-{layers}-layers-{seed}.pt",
        lambda: speaker(agreement.SIZE, agreement.LENGTH, layers, agreement.END),
        loader, loss, measure, epochs=count, learning_rate=2e-3, seed=seed,
    )  # fmt: skip


def contrast(logits: Tensor, sentences: agreement.Sentences) -> Tensor:
    """How far the right verb is ahead of the wrong one."""
    rows = torch.arange(len(logits), device=logits.device)
    _, _, last, right, wrong = (each.to(logits.device) for each in sentences)
    found: Tensor = logits[rows, last, right] - logits[rows, last, wrong]
    return found


def target(sentences: agreement.Sentences) -> Contrast:
    """The same as a target."""
    places = sentences.last.tolist()
    right, wrong = sentences.right.tolist(), sentences.wrong.tolist()
    return Contrast(list(zip(places, right, strict=True)), list(zip(places, wrong, strict=True)))


def subject(
    data: Path,  # noqa: ARG001 - as of the other tasks
    models: Path,
    samples: int,
    epochs: int | None = None,
    seed: int = 0,
) -> Subject:
    """Sentences at random, whatever the model says of them, others for each of the models."""
    fit = train(models, LAYERS, seed, epochs=epochs)
    sentences = draw(samples, seed)
    return Subject(
        NAME,
        state_of(fit.model, sentences.ids),
        facts(fit)
        | {
            "samples": (
                f"{samples} sentences for each model, with one or two nouns between the subject "
                "and its verb"
            )
        },
        Explained(fit.model.to(device()), sentences).methods(),
        {"agreement": partial(measured, sentences=sentences)},
        seed=seed,
    )


def draw(samples: int, seed: int) -> agreement.Sentences:
    """The sentences of a model."""
    return agreement.draw(samples, seed=1000 + seed)


def facts(fit: Trained) -> dict[str, str]:
    """What the model is."""
    return {
        "model": f"GPT-2, {parameters(fit.model):,} parameters",
        "held-out accuracy": (
            f"{fit.held_out['accuracy']:.1%} of 1000 sentences have the right verb before the "
            "same in the other number"
        ),
        "training": f"{fit.seconds:.0f} s",
    }


class Explained:
    """What makes the maps of one model."""

    def __init__(self, model: nn.Module, sentences: agreement.Sentences) -> None:
        self.model, self.sentences = model, sentences

    def methods(self) -> dict[str, Callable[[], Maps]]:
        """What computes the maps of each method, by its name."""
        found: dict[str, Callable[[], Maps]] = {name: partial(self._ours, name) for name in TEXT}
        found |= {name: partial(self._captum, name) for name in CAPTUM}
        return found | {RANDOM: self._random}

    def _ours(self, name: str) -> Maps:
        method = TEXT[name](self.model)
        ids = self.sentences.prompts().to(device())
        return {"contrast": method.attribute(ids, target=target(self.sentences))}

    def _captum(self, name: str) -> Maps:
        embed: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        embedded = embed(self.sentences.prompts().to(device())).detach()
        rest = tuple(each.to(device()) for each in self.sentences)
        settings = {"n_steps": INTEGRATION_STEPS} if name == "IntegratedGradients" else {}

        def score(states: Tensor, *sentences: Tensor) -> Tensor:
            logits = self.model(inputs_embeds=states).logits
            return contrast(logits, agreement.Sentences(*sentences))

        relevance = CAPTUM[name](score).attribute(
            embedded, additional_forward_args=rest, **settings
        )
        return {"contrast": relevance.sum(-1)}

    def _random(self) -> Maps:
        generator = torch.Generator().manual_seed(0)
        return {"contrast": torch.rand(self.sentences.ids.shape, generator=generator)}


def measured(maps: Maps, sentences: agreement.Sentences) -> Measured:
    """Whether the subject has the most relevance, how many have more, and how much it has."""
    visible, place = sentences.visible(), sentences.subject[:, None]
    relevance = maps["contrast"].double()
    size = relevance.abs() * visible
    share = size.gather(1, place) / size.sum(1, keepdim=True).clamp_min(1e-30)
    relevance = relevance.masked_fill(~visible, -torch.inf)
    rank = 1 + (relevance > relevance.gather(1, place)).sum(1)
    found = relevance.argmax(1) == sentences.subject
    among = relevance.masked_fill(~sentences.nouns(), -torch.inf).argmax(1) == sentences.subject
    return Measured(
        {
            "subject has most": Score.of((100.0 * found).tolist()),
            "most of the nouns": Score.of((100.0 * among).tolist()),
            "its rank": Score.of(rank.tolist(), "low"),
            "its share": Score.of((100 * share[:, 0]).tolist()),
        },
        {},
    )
