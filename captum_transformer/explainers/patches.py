"""Relevance of pixels, added up by the patches that a model cuts its input into."""

import torch
from torch import Tensor


def by_patch(relevance: Tensor, grid: tuple[int, int]) -> Tensor:
    """For each pixel the sum of its patch, ``(height, width)``.

    Args:
        relevance: of one image, ``(channels, height, width)``.
        grid: the rows and columns of patches.
    """
    _, height, width = relevance.shape
    rows, columns = (_numbers(*pair, relevance) for pair in ((height, grid[0]), (width, grid[1])))
    patch = rows[:, None] * grid[1] + columns
    sums = relevance.new_zeros(grid[0] * grid[1])
    return sums.index_add(0, patch.flatten(), relevance.sum(0).flatten())[patch]


def _numbers(length: int, patches: int, like: Tensor) -> Tensor:
    """The number of the patch that each row is in."""
    return torch.arange(length, device=like.device) * patches // length
