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
            together, whatever the model; None if each is for itself.
        models: Which model each sample was explained for, if there are several: models are drawn,
            too. None if all are of one.
    """

    values: list[list[float]]
    statistic: str = "mean"
    better: str = "high"
    groups: list[int] | None = None
    models: list[int] | None = None

    @classmethod
    def of(cls, values: Sequence[float], better: str = "high") -> "Score":
        """The mean of one value for each sample."""
        return cls([[float(value)] for value in values], better=better)

    @classmethod
    def joined(cls, parts: Sequence["Score"]) -> "Score":
        """What was measured of several models, each with samples of its own."""
        first = parts[0]
        if len(parts) == 1:
            return first
        numbers = [part.groups for part in parts if part.groups is not None]
        return cls(
            [row for part in parts for row in part.values],
            first.statistic,
            first.better,
            [number for groups in numbers for number in groups] or None,
            [model for model, part in enumerate(parts) for _ in part.values],
        )


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
    """Draws samples, with the same seed the same ones for all scores of the same samples.

    If there are several models, these are drawn, too: a sample counts as often as it and its model
    were drawn.
    """
    values = np.asarray(score.values, np.float64)
    random = np.random.default_rng(seed)
    chosen = _times(score.groups or list(range(len(values))), resamples, random)
    if score.models is not None:
        chosen = chosen * _times(score.models, resamples, random)
    # With the number of samples in the last column.
    columns = np.column_stack([values, np.ones(len(values))])
    sums = np.concatenate([np.ones((1, len(values))), chosen]) @ columns
    with np.errstate(invalid="ignore"):  # of the models that were drawn no sample was
        means = sums[:, :-1] / sums[:, -1:]
    found = STATISTICS[score.statistic](means)
    return Drawn(float(found[0]), found[1:])


def _times(groups: list[int], resamples: int, random: np.random.Generator) -> Floats:
    """How often each sample is drawn if those of a group are drawn together."""
    known, numbers = np.unique(groups, return_inverse=True)
    even = np.full(len(known), 1 / len(known))
    times: Floats = random.multinomial(len(known), even, resamples)[:, numbers].astype(np.float64)
    return times
