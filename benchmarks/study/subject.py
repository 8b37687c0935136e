"""What is studied: a model, samples, and the questions that are put to every method."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

from tqdm import tqdm

from benchmarks.study.store import Maps, Measured, Store


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
    """

    name: str
    state: str
    facts: Mapping[str, str]
    methods: Mapping[str, Callable[[], Maps]]
    metrics: Mapping[str, Callable[[Maps], Measured]]
    only: Mapping[str, Collection[str]] = field(default_factory=dict)


Results = dict[str, dict[str, Measured]]
"""By metric and method."""


def study(subject: Subject, store: Store) -> Results:
    """Puts every question to every method, but for those that were answered before."""
    results: Results = {metric: {} for metric in subject.metrics}
    for method, explain in tqdm(subject.methods.items(), desc=subject.name):
        maps = store.maps(subject.name, method, subject.state, explain)
        for metric, measure in subject.metrics.items():
            if method not in subject.only.get(metric, subject.methods):
                continue
            results[metric][method] = store.result(
                subject.name, metric, method, subject.state, partial(measure, maps)
            )
    return results


def seconds(subject: Subject, store: Store) -> dict[str, float]:
    """How long each method took for all maps."""
    return {
        method: store.maps(subject.name, method, subject.state, explain)["seconds"].item()
        for method, explain in subject.methods.items()
    }
