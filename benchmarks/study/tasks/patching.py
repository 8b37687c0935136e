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
from benchmarks.study.tasks.agreement import draw, facts, target, train

NAME, SAMPLES, SEEDS = "patching", 30, 3
DEPTHS = (3, 5, 8)


def subject(
    data: Path,  # noqa: ARG001 - as of the other tasks
    models: Path,
    samples: int,
    epochs: int | None = None,
    seed: int = 0,
) -> Subject:
    """Sentences, and the same with the subject in the other number, others for each seed."""
    sentences = draw(samples, seed)
    fits = {depth: train(models, depth, seed, epochs=epochs) for depth in DEPTHS}

    @cache
    def exact(depth: int) -> Maps:
        return patched(fits[depth].model, sentences)

    def estimated(method: str) -> Maps:
        return {
            named(depth, kind): scores
            for depth, fit in fits.items()
            for kind, scores in estimates(method, fit.model, sentences).items()
        }

    def compared(maps: Maps, depth: int) -> Measured:
        return measured({kind: maps[named(depth, kind)] for kind in KINDS}, exact(depth))

    known = {
        f"{depth} layers, {name}": fact
        for depth, fit in fits.items()
        for name, fact in facts(fit).items()
    }
    return Subject(
        NAME,
        "-".join(state_of(fit.model, sentences.ids) for fit in fits.values()),
        known | {"samples": f"{samples} pairs of sentences for each model"},
        {method: partial(estimated, method) for method in PATCHING},
        {f"{depth} layers": partial(compared, depth=depth) for depth in DEPTHS},
        seed=seed,
    )


def named(depth: int, kind: str) -> str:
    """What the maps of these parts are called."""
    return f"{kind}, {depth} layers"


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


def measured(maps: Maps, exact: Maps) -> Measured:
    """How well the estimates follow what patching changes, over all parts of a kind.

    The slope says how much of it they have.
    """
    correlations, slopes = {}, {}
    for kind in KINDS:
        x, y = exact[kind].double(), maps[kind].double()
        means = torch.stack([x, y, x * x, y * y, x * y], -1).nanmean((1, 2)).tolist()
        correlations[kind] = Score(means, "correlation")
        slopes[f"{kind}, slope"] = Score(means, "slope", "none")
    return Measured(correlations | slopes, {})
