"""Token-to-token matrices by index arithmetic on grids, row-major."""

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]

# What a window that reaches over the edge holds there: no token, the last column of a matrix.
PADDING = -1


def windows(grid: Grid, size: Grid, shift: Grid = (0, 0), *, padded_first: bool = False) -> Tensor:
    """Which token each place of each shifted window holds: ``(windows, places)``.

    Args:
        grid: rows and columns of tokens.
        size: of a window.
        shift: by how much the windows begin further down and to the right; they wrap around.
        padded_first: whether the grid is padded before it is shifted.
    """
    rows, columns = (
        _along(*axis, padded_first=padded_first) for axis in zip(grid, size, shift, strict=True)
    )
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    token = rows * grid[1] + columns
    return token.masked_fill((rows < 0) | (columns < 0), PADDING).flatten(2).flatten(0, 1)


def _along(length: int, window: int, shift: int, *, padded_first: bool) -> Tensor:
    padded = -(-length // window) * window
    place = torch.arange(padded)
    period = padded if padded_first else length
    token = (place + shift) % period
    beyond = token >= length if padded_first else place >= length
    return token.masked_fill(beyond, PADDING).unflatten(0, (-1, window))


def scattered(attention: Tensor, queries: Tensor, keys: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Maps of windows as one matrix of all tokens; the last column is what padding gets.

    Args:
        attention: ``(samples, windows, places of queries, places of keys)``.
        queries: the tokens that attend: ``(windows, places)``.
        keys: the tokens that are attended to: ``(windows, places)``.
        sizes: how many tokens there are of each.

    Returns:
        ``(samples, queries, keys + 1)``.
    """
    matrix = attention.new_zeros(len(attention), sizes[0] + 1, sizes[1] + 1)
    samples = torch.arange(len(attention))[:, None, None, None]
    places = (samples, queries[None, :, :, None], keys[None, :, None, :])
    return matrix.index_put(places, attention, accumulate=True)[:, :-1]


def receptive_fields(
    grid: Grid, kernel: int, stride: int, padding: int = 0, *, beyond: int = 0
) -> Tensor:
    """What part each cell has in what a convolution makes: equal ones, ``(made, cells)``.

    Args:
        grid: rows and columns of cells.
        kernel: of the convolution, as are the stride and the padding on both sides.
        beyond: how much further the last ones may reach over the edge.
    """
    axes = []
    for length in grid:
        reach = length + 2 * padding + beyond - kernel + 1
        first = torch.arange(0, reach, stride) - padding
        cell = torch.arange(length)
        axes.append((cell >= first[:, None]) & (cell < first[:, None] + kernel))
    seen = torch.kron(*(axis.double() for axis in axes))
    return seen / seen.sum(-1, keepdim=True)


def maxima(values: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """For each token of a max pooling the part of its features that came from each cell.

    Args:
        values: what is pooled, ``(samples, features, rows, columns)``.
        kernel: of the pooling, as are the stride and the padding.

    Returns:
        ``(samples, tokens, cells)``.
    """
    _, places = F.max_pool2d(values, kernel, stride, padding, return_indices=True)
    cells = values.shape[2] * values.shape[3]
    return F.one_hot(places.flatten(2), cells).to(values.dtype).mean(1)
