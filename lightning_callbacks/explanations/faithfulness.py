"""The faithfulness of a map, by deletion and insertion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from captum_transformer.metrics import place_shape, rank_places, replace_places
from lightning_callbacks.samples.batch import Samples
from lightning_callbacks.shared.flavors import MisconfigurationException


@dataclass(frozen=True)
class Faithfulness:
    r"""Areas under the deletion and insertion curves (Petsiuk, Das & Saenko, BMVC 2018).

    Places (pixels, tokens) are replaced by a baseline, the most relevant first, and the curve is
    the class's probability over the share of replaced places: a faithful map has a small area.
    Insertion goes the other way, from the baseline to the sample: a faithful map has a large area.
    The area is computed by the trapezoidal rule from ``steps + 1`` points. Places with equal
    relevance are replaced in reading order.

    Each of the two takes ``steps + 1`` forward passes for each explained class and method.

    Args:
        steps: The number of equal steps in which the places are replaced.
        baseline: The value that replaces them: a number, such as the id of a mask token, or
            ``"mean"``, the mean of each channel over the sample (the paper blurs for insertion).

    Raises:
        MisconfigurationException: If an argument is invalid.

    References:
        `RISE: Randomized Input Sampling for Explanation of Black-box Models
        <https://arxiv.org/abs/1806.07421>`_.

    Example:
        >>> Faithfulness(steps=4, baseline=0)
        Faithfulness(steps=4, baseline=0)
    """

    steps: int = 8
    baseline: float | str = "mean"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise MisconfigurationException(f"steps must be at least 1, got {self.steps}.")
        if isinstance(self.baseline, str) and self.baseline != "mean":
            raise MisconfigurationException(
                f"baseline must be a number or 'mean', got {self.baseline!r}."
            )

    def areas(
        self,
        samples: Samples,
        pairs: Sequence[tuple[int, int]],
        maps: Sequence[Tensor],
        probabilities: Callable[[Samples], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Returns the areas of some explanations.

        Args:
            samples: The samples, on the model's device.
            pairs: Sample numbers and class ids.
            maps: For each pair a value per place, with all inputs one after the other.
            probabilities: Runs the model and returns ``(B, C)``.

        Returns:
            Deletion and insertion, ``(pairs,)`` each.

        Raises:
            ValueError: If the baseline doesn't fit the inputs.
        """
        rows, classes = [row for row, _ in pairs], [class_id for _, class_id in pairs]
        whole = samples.select(rows)
        empty = tuple(self._baseline(values) for values in whole.inputs)
        relevance = torch.stack([values.flatten() for values in maps]).to(whole.inputs[0].device)
        rank = rank_places(relevance)
        curves = []
        for deleting in (True, False):
            points = []
            for step in range(self.steps + 1):
                changed = rank < round(step * rank.shape[1] / self.steps)
                inputs = _mix(whole.inputs, empty, changed if deleting else ~changed)
                scores = probabilities(replace(whole, inputs=inputs))
                points.append(scores[range(len(pairs)), classes])
            curves.append(torch.stack(points, 1))
        deletion, insertion = (torch.trapezoid(curve, dim=1) / self.steps for curve in curves)
        return deletion, insertion

    def _baseline(self, values: Tensor) -> Tensor:
        if not isinstance(self.baseline, str):
            return torch.full_like(values, self.baseline)
        if not values.is_floating_point():
            raise ValueError(
                "The mean of token ids has no meaning. Pass the id of a neutral token, such as "
                "[MASK]: Faithfulness(baseline=103)."
            )
        places = _place_dims(values)
        return values.mean(places, keepdim=True).expand_as(values) if places else 0 * values


def _place_dims(values: Tensor) -> tuple[int, ...]:
    """Returns the dimensions of an input's places; the others are its samples and channels."""
    return {4: (2, 3), 3: (1,)}.get(values.dim(), ())


def _mix(whole: Sequence[Tensor], empty: Sequence[Tensor], gone: Tensor) -> tuple[Tensor, ...]:
    """Puts the baseline where a place is replaced; ``gone`` is ``(B, places of all inputs)``."""
    parts = torch.split(gone, [prod(place_shape(values)) for values in whole], dim=1)
    return tuple(map(replace_places, whole, empty, parts))
