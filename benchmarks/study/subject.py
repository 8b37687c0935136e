"""What is studied: a model, samples, and the questions that are put to every method."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm

from benchmarks.study.bootstrap import Score
from benchmarks.study.store import SCATTER, Curve, Maps, Measured, Store


@dataclass(frozen=True)
class Subject:
    """A model and samples, ready to be explained.

    Attributes:
        name: The task, with the name of a model that was given.
        state: Changes with everything that results depend on.
        facts: What a reader has to know: the model, its accuracy, the samples.
        methods: What computes the maps of all samples.
        metrics: What measures maps.
        only: Which methods a metric is for; all of them if it is not named here.
        seed: Which of the task's models it is.
    """

    name: str
    state: str
    facts: Mapping[str, str]
    methods: Mapping[str, Callable[[], Maps]]
    metrics: Mapping[str, Callable[[Maps], Measured]]
    only: Mapping[str, Collection[str]] = field(default_factory=dict)
    seed: int = 0

    @property
    def kept_as(self) -> str:
        """What its maps and results are kept as."""
        return f"{self.name}-{self.seed}"


def evenly(among: int, samples: int, seed: int = 0) -> list[int]:
    """Which samples of a file to take: evenly from all of it, for each model the next ones."""
    places = torch.linspace(0, among - 1, min(samples, among)).long()
    return ((places + seed) % among).tolist()


Results = dict[str, dict[str, Measured]]
"""By metric and method."""


class Studied(NamedTuple):
    """What came out.

    Attributes:
        name: The subject's.
        facts: What a reader has to know.
        results: Of all metrics and methods.
        seconds: How long each method took for all maps.
    """

    name: str
    facts: dict[str, str]
    results: Results
    seconds: dict[str, float]


def study(subject: Subject, store: Store) -> Studied:
    """Puts every question to every method, but for those that were answered before."""
    results: Results = {metric: {} for metric in subject.metrics}
    seconds = {}
    for method, explain in tqdm(subject.methods.items(), desc=subject.kept_as):
        maps = store.maps(subject.kept_as, method, subject.state, explain)
        seconds[method] = maps["seconds"].item()
        for metric, measure in subject.metrics.items():
            if method not in subject.only.get(metric, subject.methods):
                continue
            results[metric][method] = store.result(
                subject.kept_as, metric, method, subject.state, partial(measure, maps)
            )
    return Studied(subject.name, dict(subject.facts), results, seconds)


def joined(parts: list[Studied]) -> Studied:
    """Pools what came out for the models of a task."""
    first = parts[0]
    count = "one" if len(parts) == 1 else f"{len(parts)}, which differ in their seeds"
    facts = {name: in_one([part.facts[name] for part in parts]) for name in first.facts}
    return Studied(
        first.name,
        {"models": count, **facts},
        {
            metric: {
                method: _pooled([part.results[metric][method] for part in parts])
                for method in by_method
            }
            for metric, by_method in first.results.items()
        },
        {method: sum(part.seconds[method] for part in parts) for method in first.seconds},
    )


def in_one(facts: list[str]) -> str:
    """The same fact of several models: words in which they differ stand side by side."""
    words = [re.findall(r"\S+?(?=,?(?:\s|$))|,", fact) for fact in facts]
    if len({len(each) for each in words}) > 1:
        return "; ".join(facts)
    columns = zip(*words, strict=True)
    joined = " ".join(each[0] if len({*each}) == 1 else " / ".join(each) for each in columns)
    return joined.replace(" ,", ",")


def _pooled(parts: list[Measured]) -> Measured:
    scores = {n: Score.joined([part.scores[n] for part in parts]) for n in parts[0].scores}
    curves = {n: _curve(n, [part.curves[n] for part in parts]) for n in parts[0].curves}
    return Measured(scores, curves)


def _curve(name: str, parts: list[Curve]) -> Curve:
    """All points of a scatter; of a line, its mean over the models."""
    if name == SCATTER:
        return [x for xs, _ in parts for x in xs], [y for _, ys in parts for y in ys]
    lines = zip(*(ys for _, ys in parts), strict=True)
    return parts[0][0], [sum(values) / len(parts) for values in lines]
