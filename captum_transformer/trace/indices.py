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


def moved_dims(index: Any, ndim: int) -> list[int | None]:
    """Where an index leaves each dimension of a tensor; None for those that it picks along.

    Tensors in an index pick along all their dimensions at once. What they pick stands where they
    stand, if they stand side by side, and in front otherwise.

    Args:
        index: as `with_tensors` makes it; the tensors' types and shapes are all that counts.
        ndim: how many dimensions are indexed.

    >>> moved_dims((torch.tensor([0, 1]), torch.tensor([3, 2])), 3)
    [None, None, 1]
    >>> moved_dims((slice(None), None, torch.tensor([[0, 1]])), 3)
    [0, None, 4]
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = next((n for n, part in enumerate(parts) if part is Ellipsis), len(parts))
    whole = [slice(None)] * (ndim - sum(map(_dims_of, parts)))
    # What is left of the tensor before tensors pick from it: a dimension, None for a new one, or
    # how many dimensions a tensor has in the place of those that it picks along.
    left: list[int | _Picked | None] = []
    dim = 0
    for part in (*parts[:dots], *whole, *parts[dots + 1 :]):
        if part is None:
            left.append(None)
        elif isinstance(part, slice):
            left.append(dim)
        elif not _is_number(part):
            left.append(_Picked(1 if _is_mask(part) else len(part.shape)))
        dim += _dims_of(part)
    at = [n for n, slot in enumerate(left) if isinstance(slot, _Picked)]
    kept = [slot for slot in left if not isinstance(slot, _Picked)]
    if at:
        side_by_side = at[-1] - at[0] < len(at)
        new = max(slot.dims for slot in left if isinstance(slot, _Picked))
        front = at[0] if side_by_side else 0
        kept[front:front] = [None] * new
    return [kept.index(source) if source in kept else None for source in range(ndim)]


class _Picked(NamedTuple):
    """Tensors that pick entries, and have so many dimensions."""

    dims: int


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
