"""Spearman's rank correlation: whether two attributions agree on what matters more."""

import torch
from torch import Tensor


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of two tensors, with average ranks for ties.

    Args:
        first: Any tensor of numbers.
        second: A tensor of the same shape.

    Returns:
        A float64 scalar in [-1, 1]; NaN if all values of a tensor are equal.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> rank_correlation(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([9.0, 1.0, 4.0])).round()
        tensor(1., dtype=torch.float64)
    """
    if first.shape != second.shape:
        raise ValueError(
            "A rank correlation needs two tensors of the same shape, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    a, b = average_ranks(first), average_ranks(second)
    a, b = a - a.mean(), b - b.mean()
    norm = torch.linalg.vector_norm
    return torch.clamp(torch.dot(a, b) / (norm(a) * norm(b)), -1, 1)


def average_ranks(values: Tensor) -> Tensor:
    """The rank of each value, from 1; equal values share the mean of their ranks.

    Args:
        values: Any tensor of numbers.

    Returns:
        Float64 ranks ``(values.numel(),)``.

    Example:
        >>> average_ranks(torch.tensor([30, 10, 30, 20]))
        tensor([3.5000, 1.0000, 3.5000, 2.0000], dtype=torch.float64)
    """
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks: Tensor = last.double() - (counts.double() - 1) / 2
    return ranks[group.flatten()]
