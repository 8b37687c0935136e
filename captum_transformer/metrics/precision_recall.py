"""Areas under precision-recall curves of samples, with ties treated as in scikit-learn."""

from typing import Literal

import torch
from torch import Tensor

from captum_transformer.calling.precision import widened
from captum_transformer.metrics.ties import tied_places

Interpolation = Literal["step", "linear"]


def area_under_precision_recall(
    scores: Tensor,
    labels: Tensor,
    where: Tensor | None = None,
    *,
    interpolation: Interpolation = "step",
) -> Tensor:
    r"""Returns the area under each sample's precision-recall curve.

    Each distinct score is one threshold, so no threshold separates equal scores: a constant map
    gets the share of positives, which is the chance level.

    Args:
        scores: Finite scores ``(samples, places)``.
        labels: Which places are positive, ``(samples, places)`` booleans; at least one in each row.
        where: Which places count, booleans; all if None.
        interpolation: Between two thresholds precision is that of the lower one (``"step"``,
            :math:`\sum_n (R_n - R_{n-1}) P_n`, scikit-learn's ``average_precision_score``) or on
            the straight line (``"linear"``, the trapezoidal rule over ``precision_recall_curve``).

    Returns:
        Float64 areas ``(samples,)``.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8, 0.7]])
        >>> labels = torch.tensor([[True, False, True]])
        >>> area_under_precision_recall(scores, labels)
        tensor([0.8333], dtype=torch.float64)
    """
    scores = widened(scores)
    if where is not None:
        # Put after all others, where they don't change the precision at any positive.
        scores, labels = scores.masked_fill(~where, -torch.inf), labels & where
    ordered, order = scores.sort(1, descending=True)
    positive = labels.gather(1, order)
    first, last = tied_places(ordered)
    found = widened(positive.cumsum(1))
    precision = found / torch.arange(1, found.shape[1] + 1, device=found.device)
    height = precision.gather(1, last)
    if interpolation == "linear":
        before = precision.gather(1, (first - 1).clamp(min=0)).where(first > 0, 1.0)
        height = (height + before) / 2
    return (height * positive).sum(1) / positive.sum(1)
