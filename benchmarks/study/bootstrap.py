"""Confidence intervals: what else the figure might have been, had other samples been drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES, LEVEL = 2000, 0.95


def _correlation(m: Floats) -> Floats:
    x, y, xx, yy, xy = m.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))


def _slope(m: Floats) -> Floats:
    x, y, xx, _, xy = m.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xy - x * y) / (xx - x * x)


STATISTICS: dict[str, Callable[[Floats], Floats]] = {
    "mean": lambda m: m[:, 0],
    # Counts are added up over the samples before they are divided: part, whole, part, whole, ...
    "ratios": lambda m: (m[:, 0::2] / m[:, 1::2]).mean(1),
    # Of x, y, x², y² and xy.
    "correlation": _correlation,
    "slope": _slope,
}
"""Statistics as functions of the samples' means: ``(repeats, columns)`` to one for each repeat."""


@dataclass(frozen=True)
class Score:
    """What was measured of each sample.

    Attributes:
        values: The columns that the statistic needs, for each sample.
        statistic: A name in `STATISTICS`.
        better: ``"high"``, ``"low"`` or ``"none"``.
        groups: Which samples belong together (several classes in one picture) and are drawn
            together; None if each is for itself.
        models: Which model each sample was explained for, if there are several: models are drawn,
            too, then samples of each. None if all are of one.
    """

    values: list[list[float]]
    statistic: str = "mean"
    better: str = "high"
    groups: list[int] | None = None
    models: list[int] | None = None

    @classmethod
    def of(
        cls, values: Sequence[float], better: str = "high", models: list[int] | None = None
    ) -> "Score":
        """The mean of one value for each sample."""
        return cls([[float(value)] for value in values], better=better, models=models)


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Drawn:
    """A figure, and what it is on samples drawn from the samples.

    Attributes:
        value: the figure.
        others: the figure on the samples of each draw.
    """

    value: float
    others: Floats

    def minus(self, other: "Drawn") -> "Drawn":
        """How much larger this figure is, draw by draw: both must be of the same samples."""
        return Drawn(self.value - other.value, self.others - other.others)

    def interval(self) -> Interval:
        """The figure with its percentile interval."""
        outside = (1 - LEVEL) / 2
        low, high = np.nanquantile(self.others, [outside, 1 - outside])
        return Interval(self.value, float(low), float(high))


def draw(score: Score, resamples: int = RESAMPLES, seed: int = 0) -> Drawn:
    """Draws samples, with the same seed the same ones for all scores of the same samples."""
    values = np.asarray(score.values, np.float64)
    groups = np.arange(len(values)) if score.groups is None else np.asarray(score.groups)
    _, numbers = np.unique(groups, return_inverse=True)
    count = int(numbers.max()) + 1
    # With the number of samples in the last column, as groups differ in size.
    sums = np.zeros((count, values.shape[1] + 1))
    np.add.at(sums, numbers, np.column_stack([values, np.ones(len(values))]))

    statistic = STATISTICS[score.statistic]
    of_model = np.zeros(count, int)
    of_model[numbers] = 0 if score.models is None else score.models
    chosen = _chosen(of_model, resamples, np.random.default_rng(seed))
    drawn = np.concatenate([np.ones((1, count)), chosen]) @ sums
    found = statistic(drawn[:, :-1] / drawn[:, -1:])
    return Drawn(float(found[0]), found[1:])


def _chosen(of_model: NDArray[np.int_], resamples: int, random: np.random.Generator) -> Floats:
    """How often each sample is drawn: models first if there are several, then samples of each."""
    models = np.unique(of_model)
    times = np.ones((resamples, 1), int)
    if len(models) > 1:
        times = random.multinomial(len(models), [1 / len(models)] * len(models), resamples)
    chosen = np.zeros((resamples, len(of_model)))
    for model, repeats in zip(models, times.T, strict=True):
        inside = np.flatnonzero(of_model == model)
        even = [1 / len(inside)] * len(inside)
        chosen[:, inside] = random.multinomial(repeats * len(inside), even)
    return chosen
