"""Which parts of a model does the number of the subject go through?"""

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.study.activation_patching import KINDS, layers_of, patched
from benchmarks.study.bootstrap import Score
from benchmarks.study.data import agreement
from benchmarks.study.methods import PATCHING
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.tasks.agreement import SEEDS, facts, target, train

NAME, SAMPLES = "patching", 30  # samples of each model
DEPTHS = (3, 5, 8)


def subject(data: Path, models: Path, samples: int, epochs: int | None = None) -> Subject:  # noqa: ARG001 - as of the other tasks
    """Sentences, and the same with the subject in the other number, others for each model."""
    sentences = [agreement.draw(samples, seed=1000 + seed) for seed in range(SEEDS)]
    trained = {
        depth: [train(models, depth, seed, epochs=epochs) for seed in range(SEEDS)]
        for depth in DEPTHS
    }

    @cache
    def exact(depth: int) -> Maps:
        pairs = zip(trained[depth], sentences, strict=True)
        return joined([patched(each.model, given) for each, given in pairs])

    def estimated(method: str) -> Maps:
        return {
            named(depth, kind): scores
            for depth, speakers in trained.items()
            for kind, scores in joined(
                [
                    estimates(method, each.model, given)
                    for each, given in zip(speakers, sentences, strict=True)
                ]
            ).items()
        }

    def compared(maps: Maps, depth: int) -> Measured:
        return measured({kind: maps[named(depth, kind)] for kind in KINDS}, exact(depth), SEEDS)

    known: dict[str, str] = {}
    for depth, speakers in trained.items():
        known |= {f"{depth} layers, {name}": fact for name, fact in facts(speakers).items()}
    states = [
        state_of(each.model, given.ids)
        for speakers in trained.values()
        for each, given in zip(speakers, sentences, strict=True)
    ]
    return Subject(
        NAME,
        "-".join(states),
        known | {"samples": f"{samples} pairs of sentences for each model"},
        {method: partial(estimated, method) for method in PATCHING},
        {f"{depth} layers": partial(compared, depth=depth) for depth in DEPTHS},
    )


def named(depth: int, kind: str) -> str:
    """What the maps of these parts are called."""
    return f"{kind}, {depth} layers"


def joined(parts: list[Maps]) -> Maps:
    """What is known of all models, one after the other."""
    return {kind: torch.cat([each[kind] for each in parts]) for kind in parts[0]}


def estimates(method: str, model: Any, sentences: agreement.Sentences) -> Maps:
    """What a method says of each part, in the shapes of what patching gives."""
    patching = PATCHING[method](model)
    given, wanted = (sentences.prompts(), sentences.swapped()), target(sentences)
    places, reached = sentences.from_subject()
    found: dict[str, list[Tensor]] = {}
    for kind in KINDS:
        if kind == "head":
            found[kind] = [each.sum(-1) for each in patching.attribute_heads(*given, wanted)]
        else:
            scores: Any = patching.attribute(*given, layers_of(model, kind), wanted)
            words = [each.sum(-1).gather(1, places) for each in scores]
            found[kind] = [each.masked_fill(~reached, torch.nan) for each in words]
    return {kind: torch.stack(of_layers, 1) for kind, of_layers in found.items()}


def measured(maps: Maps, exact: Maps, models: int) -> Measured:
    """How well the estimates follow what patching changes, over all parts of a kind.

    The slope says how much of it they have.
    """
    correlations, slopes = {}, {}
    for kind in KINDS:
        x, y = exact[kind].double(), maps[kind].double()
        means = torch.stack([x, y, x * x, y * y, x * y], -1).nanmean((1, 2)).tolist()
        of_model = torch.arange(models).repeat_interleave(len(x) // models).tolist()
        correlations[kind] = Score(means, "correlation", models=of_model)
        slopes[f"{kind}, slope"] = Score(means, "slope", "none", models=of_model)
    return Measured(correlations | slopes, {})
