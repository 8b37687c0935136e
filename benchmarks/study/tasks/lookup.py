"""Which token of the prompt does the answer come from?"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.study.bootstrap import Score
from benchmarks.study.data import lookup
from benchmarks.study.methods import CAPTUM, INTEGRATION_STEPS, RANDOM, TEXT
from benchmarks.study.models import decoder, device, parameters
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.training import Trained, trained
from captum_transformer import Contrast

NAME, SAMPLES, SEEDS = "lookup", 200, 3
EPOCHS = 4
TRAINING = 20_000
BATCH = 128


def train(models: Path, seed: int, *, epochs: int | None = None) -> Trained:
    def loader() -> DataLoader[tuple[Tensor, ...]]:
        prompts, _, answers, _ = lookup.draw(TRAINING, seed=1)
        return DataLoader(TensorDataset(prompts, answers), BATCH, shuffle=True)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        prompts, answers = batch
        return F.cross_entropy(model(input_ids=prompts).logits[:, -1], answers)

    def measure(model: nn.Module) -> dict[str, float]:
        prompts, _, answers, _ = lookup.draw(1000, seed=2)
        on = next(model.parameters()).device
        found = torch.cat(
            [model(input_ids=part.to(on)).logits[:, -1] for part in prompts.split(100)]
        )
        return {"accuracy": (found.argmax(1).cpu() == answers).double().mean().item()}

    return trained(
        models / f"{NAME}-{seed}.pt", lambda: decoder(lookup.SIZE), loader, loss, measure,
        epochs=epochs or EPOCHS, learning_rate=3e-3, seed=seed,
    )  # fmt: skip


def subject(
    data: Path,  # noqa: ARG001 - as of the other tasks
    models: Path,
    samples: int,
    epochs: int | None = None,
    seed: int = 0,
) -> Subject:
    """Prompts at random, whatever the model says of them."""
    model, held_out, seconds = train(models, seed, epochs=epochs)
    prompts = lookup.draw(samples, seed=3 + seed)
    explained = Explained(model.to(device()), prompts)
    return Subject(
        NAME,
        state_of(model, prompts.prompts),
        {
            "model": f"Llama, 3 layers, {parameters(model):,} parameters",
            "held-out accuracy": f"{held_out['accuracy']:.1%} of 1000 prompts",
            "training": f"{seconds:.0f} s",
            "samples": (
                f"{samples} prompts of a start token, {lookup.ITEMS} items that each have a key "
                "and a value, and one of the keys; the answer is its value"
            ),
        },
        explained.methods(),
        {
            name: partial(measured, maps_name=name, place=prompts.place)
            for name in ("answer", "contrast")
        },
        seed=seed,
    )


class Explained:
    """What makes the maps of the answer, and of the answer rather than another value."""

    def __init__(self, model: nn.Module, lookups: lookup.Lookups) -> None:
        self.model, self.lookups = model, lookups

    def methods(self) -> dict[str, Callable[[], Maps]]:
        """What computes the maps of each method, by its name."""
        found: dict[str, Callable[[], Maps]] = {name: partial(self._ours, name) for name in TEXT}
        found |= {name: partial(self._captum, name) for name in CAPTUM}
        return found | {RANDOM: self._random}

    def _ours(self, name: str) -> Maps:
        method = TEXT[name](self.model)
        ids, _, answers, rivals = (each.to(device()) for each in self.lookups)
        last = lookup.LENGTH - 1
        target = [(last, answer) for answer in answers.tolist()]
        rather_than = [(last, rival) for rival in rivals.tolist()]
        return {
            "answer": method.attribute(ids, target=target),
            "contrast": method.attribute(ids, target=Contrast(target, rather_than)),
        }

    def _captum(self, name: str) -> Maps:
        ids, _, answers, rivals = (each.to(device()) for each in self.lookups)
        embedded = self.model.get_input_embeddings()(ids).detach()  # type: ignore[operator]
        settings = {"n_steps": INTEGRATION_STEPS} if name == "IntegratedGradients" else {}

        def score(states: Tensor, answer: Tensor, rival: Tensor, weight: float) -> Tensor:
            logits = self.model(inputs_embeds=states).logits[:, -1]
            of_answer, of_rival = (
                logits.gather(1, each[:, None])[:, 0] for each in (answer, rival)
            )
            difference: Tensor = of_answer - weight * of_rival
            return difference

        method = CAPTUM[name](score)
        return {
            kind: method.attribute(
                embedded, additional_forward_args=(answers, rivals, weight), **settings
            ).sum(-1)
            for kind, weight in (("answer", 0.0), ("contrast", 1.0))
        }

    def _random(self) -> Maps:
        generator = torch.Generator().manual_seed(0)
        chance = torch.rand(self.lookups.prompts.shape, generator=generator)
        return {"answer": chance, "contrast": chance}


def measured(maps: Maps, maps_name: str, place: Tensor) -> Measured:
    """Whether the right token has the most relevance, and how much the first one takes."""
    relevance = maps[maps_name].double()
    found = relevance.argmax(1) == place
    # The first token, left out: what is left of the question.
    without_first = relevance[:, 1:].argmax(1) + 1 == place
    size = relevance.abs() / relevance.abs().sum(1, keepdim=True).clamp_min(1e-30)
    right = size.gather(1, place[:, None])[:, 0]
    return Measured(
        {
            f"{maps_name}, right token has most": Score.of((100.0 * found).tolist()),
            f"{maps_name}, without the first token": Score.of((100.0 * without_first).tolist()),
            f"{maps_name}, share of the right token": Score.of((100 * right).tolist()),
            f"{maps_name}, share of the first token": Score.of((100 * size[:, 0]).tolist(), "none"),
        },
        {},
    )
