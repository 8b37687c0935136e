"""Spearman's rank correlation: whether two attributions agree on what matters more."""

import torch
from torch import Tensor

from captum_transformer.calling.precision import widened
from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics.ties import tied_places


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Returns Spearman's rank correlation of each sample's two maps, with average ranks for ties.

    Args:
        first: Maps of any shape, samples first: ``(samples, ...)``.
        second: Maps of the same shape.

    Returns:
        Float64 values in [-1, 1], ``(samples,)``; NaN if all values of a map are equal, since they
        have no order.

    Raises:
        InvalidInputError: If the shapes differ.

    Example:
        >>> first = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
        >>> second = torch.tensor([[9.0, 1.0, 4.0], [1.0, 3.0, 2.0]])
        >>> rank_correlation(first, second).round()
        tensor([ 1., -1.], dtype=torch.float64)
    """
    if first.shape != second.shape or not first.dim():
        raise InvalidInputError(
            "A rank correlation needs maps of the same shape, samples first, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    a, b = average_ranks(first), average_ranks(second)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    correlation: Tensor = (a * b).sum(1) / norms
    return correlation.clamp(-1, 1)


def average_ranks(values: Tensor) -> Tensor:
    """Returns the rank of each value in its sample, from 1; equal values share their mean rank.

    Args:
        values: Numbers of any shape, samples first: ``(samples, ...)``.

    Returns:
        Float64 ranks ``(samples, values)``.

    Example:
        >>> average_ranks(torch.tensor([[30, 10, 30, 20]]))
        tensor([[3.5000, 1.0000, 3.5000, 2.0000]], dtype=torch.float64)
    """
    ordered, order = values.flatten(1).sort(1)
    first, last = tied_places(ordered)
    ranks = widened(first + last) / 2 + 1
    return torch.empty_like(ranks).scatter_(1, order, ranks)
