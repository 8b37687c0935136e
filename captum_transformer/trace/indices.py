"""Indices as torch reads them: lists, arrays and ranges pick entries, as tensors do."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# From this length on a list is numbers, whatever is in it.
_LONG = 32
_READ_AS_IT_IS = frozenset({int, bool, slice, type(None), type(Ellipsis), Tensor})


def with_tensors(index: Any) -> Any:
    """An index with tensors in the place of lists and arrays, which mean the same.

    >>> with_tensors([[0, 2]]), with_tensors((slice(None), [True, False]))
    ((tensor([0, 2]),), (slice(None, None, None), tensor([ True, False])))
    """
    if isinstance(index, tuple) or _is_of_dimensions(index):
        return tuple(map(_position, index))
    return _position(index)


def _is_of_dimensions(index: Any) -> bool:
    """Whether a list has something for each dimension, as a tuple does."""
    if not isinstance(index, (list, range)) or len(index) >= _LONG:
        return False
    dimensions = any(
        part is None or part is Ellipsis or isinstance(part, (Tensor, np.ndarray, Sequence, slice))
        for part in index
    )
    return dimensions and _torch_reads_dimensions()


@cache
def _torch_reads_dimensions() -> bool:
    """Whether torch still takes some lists for tuples; it announces that it won't."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.empty(1, 1)[[[0], [0]]].ndim == 1


def _position(part: Any) -> Any:
    """What is given for a dimension; sequences of numbers as a tensor."""
    if type(part) in _READ_AS_IT_IS:
        return part
    if isinstance(part, np.ndarray) and part.size:
        return torch.from_numpy(part) if part.ndim else part.item()
    if isinstance(part, (Sequence, np.ndarray)) and not isinstance(part, str):
        return torch.tensor(part, dtype=None if len(part) else torch.long)
    return part


class Picked(NamedTuple):
    """How what an index picks lies over the dimensions of the tensor.

    Attributes:
        to: where each dimension is left; None for those that are picked along.
        ndim: how many dimensions there are in the end.
        front: where the dimensions stand of what tensors pick.
        new: how many these are.
    """

    to: tuple[int | None, ...]
    ndim: int
    front: int
    new: int


def picked(index: Any, ndim: int) -> Picked:
    """Where an index leaves each dimension of a tensor.

    Tensors in an index pick along all their dimensions at once. What they pick stands where they
    stand, if they stand side by side, and in front otherwise.

    Args:
        index: as `with_tensors` makes it; the tensors' types and shapes are all that counts.
        ndim: how many dimensions are indexed.

    >>> picked((torch.tensor([0, 1]), torch.tensor([3, 2])), 3).to
    (None, None, 1)
    >>> picked((slice(None), None, torch.tensor([[0, 1]])), 3)
    Picked(to=(0, None, 4), ndim=5, front=2, new=2)
    """
    parts = list(index) if isinstance(index, (tuple, list)) else [index]
    dots = next((n for n, part in enumerate(parts) if part is Ellipsis), len(parts))
    whole = [slice(None)] * (ndim - sum(map(_dims_of, parts)))
    # What is left of the tensor: its dimensions, and None for new ones.
    kept: list[int | None] = []
    at: list[int] = []
    dim = new = 0
    for part in (*parts[:dots], *whole, *parts[dots + 1 :]):
        if part is None:
            kept.append(None)
        elif isinstance(part, slice):
            kept.append(dim)
        elif not _is_number(part):
            at.append(len(kept))
            new = max(new, 1 if _is_mask(part) else len(part.shape))
        dim += _dims_of(part)
    front = at[0] if at and at[0] == at[-1] else 0
    kept[front:front] = [None] * new
    to = tuple(kept.index(source) if source in kept else None for source in range(ndim))
    return Picked(to, len(kept), front, new)


def _dims_of(part: Any) -> int:
    """How many dimensions of a tensor a part of an index is for."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return len(part.shape) if _is_mask(part) else 1


def _is_mask(part: Any) -> bool:
    return isinstance(part, bool) or getattr(part, "dtype", None) in (torch.bool, torch.uint8)


def _is_number(part: Any) -> bool:
    """Whether it picks one entry, as an integer does."""
    return not _is_mask(part) and not getattr(part, "shape", ())
