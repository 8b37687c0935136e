"""What the papers' tables say, and whether the order of methods is the same here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.study.bootstrap import Drawn, Interval, Score, draw
from benchmarks.study.methods import STATES


class Published(NamedTuple):
    """A column of a paper's table, by our names of the methods."""

    source: str
    figures: Mapping[str, float]


PUBLISHED: dict[tuple[str, str, str], Published] = {
    ("sentiment", "activation", "AUAC"): Published(
        "ICML 2022, SST-2",
        {
            "Random": 0.664,
            "RawAttention": 0.712,
            "AttentionRollout": 0.713,
            "Saliency": 0.773,
            "GenericAttentionRelevance": 0.834,
            "InputXGradient": 0.847,
            "ConservativeLRP, AH only": 0.855,
            "ConservativeLRP": 0.908,
        },
    ),
    ("vision", "perturbation", "predicted, negative"): Published(
        "CVPR 2021, ImageNet",
        {"AttentionRollout": 53.1, "AttentionGradCam": 41.5, "TransformerAttribution": 54.2},
    ),
}


@dataclass(frozen=True)
class Comparison:
    """A published column beside ours.

    Attributes:
        source: The paper and the data.
        rows: Method, the paper's figure, ours.
        rank_correlation: Spearman's, of the two columns.
    """

    source: str
    rows: list[tuple[str, float, float]]
    rank_correlation: Interval


def compare(task: str, metric: str, score: str, ours: Mapping[str, Score]) -> Comparison | None:
    """Compares with what was published of this score, if anything was.

    Where a method was also applied behind the embeddings, as the ICML 2022 experiments do, that is
    what is compared.
    """
    published = PUBLISHED.get((task.split(" ", 1)[0], metric, score))
    if published is None:
        return None
    figures = {
        name + STATES if name + STATES in ours else name: value
        for name, value in published.figures.items()
        if name in ours
    }
    found = [draw(ours[name]) for name in figures]
    theirs = _ranks(np.array([list(figures.values())]))
    drawn = _agreement(theirs, _ranks(np.stack([each.others for each in found], 1)))
    (value,) = _agreement(theirs, _ranks(np.array([[each.value for each in found]])))
    rows = [
        (name, paper, each.value)
        for (name, paper), each in zip(figures.items(), found, strict=True)
    ]
    return Comparison(published.source, rows, Drawn(float(value), drawn).interval())


def _ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort(1).argsort(1).astype(float)


def _agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row."""
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (first, second))
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
