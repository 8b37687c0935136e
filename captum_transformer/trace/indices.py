"""Indices as torch interprets them: lists, arrays and ranges select entries like tensors."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Lists of at least this length are always sequences of numbers.
_LONG = 32
_READ_AS_IT_IS = frozenset({int, bool, slice, type(None), type(Ellipsis), Tensor})


def with_tensors(index: Any) -> Any:
    """Returns an equivalent index with tensors in place of lists and arrays.

    >>> with_tensors([[0, 2]]), with_tensors((slice(None), [True, False]))
    ((tensor([0, 2]),), (slice(None, None, None), tensor([ True, False])))
    """
    if isinstance(index, tuple) or _is_of_dimensions(index):
        return tuple(map(_position, index))
    return _position(index)


def _is_of_dimensions(index: Any) -> bool:
    """Whether a list has one item per dimension, like a tuple."""
    if not isinstance(index, (list, range)) or len(index) >= _LONG:
        return False
    dimensions = any(
        part is None or part is Ellipsis or isinstance(part, (Tensor, np.ndarray, Sequence, slice))
        for part in index
    )
    return dimensions and _torch_reads_dimensions()


@cache
def _torch_reads_dimensions() -> bool:
    """Whether this version of torch still treats some lists as tuples, which is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.empty(1, 1)[[[0], [0]]].ndim == 1


def _position(part: Any) -> Any:
    """Converts the item for one dimension: sequences of numbers become tensors."""
    if type(part) in _READ_AS_IT_IS:
        return part
    if isinstance(part, np.ndarray) and part.size:
        return torch.from_numpy(part) if part.ndim else part.item()
    if isinstance(part, (Sequence, np.ndarray)) and not isinstance(part, str):
        return torch.tensor(part, dtype=None if len(part) else torch.long)
    return part


class Picked(NamedTuple):
    """How the result of indexing relates to the dimensions of the tensor.

    Attributes:
        to: for each dimension of the tensor, its place in the result; None for dimensions that are
            indexed by a number or a tensor.
        ndim: the number of dimensions of the result.
        front: the first dimension of the result that belongs to the index tensors.
        new: the number of these dimensions.
    """

    to: tuple[int | None, ...]
    ndim: int
    front: int
    new: int


def picked(index: Any, ndim: int) -> Picked:
    """Returns where each dimension of a tensor is after indexing.

    All tensors in an index select jointly. The dimensions of their result are in place of the index
    tensors if these are adjacent, and in front otherwise.

    Args:
        index: an index as returned by `with_tensors`; only the dtypes and shapes of its tensors
            matter.
        ndim: the number of dimensions of the tensor.

    >>> picked((torch.tensor([0, 1]), torch.tensor([3, 2])), 3).to
    (None, None, 1)
    >>> picked((slice(None), None, torch.tensor([[0, 1]])), 3)
    Picked(to=(0, None, 4), ndim=5, front=2, new=2)
    """
    parts = list(index) if isinstance(index, (tuple, list)) else [index]
    dots = next((n for n, part in enumerate(parts) if part is Ellipsis), len(parts))
    whole = [slice(None)] * (ndim - sum(map(_dims_of, parts)))
    # The dimensions of the result: those kept from the tensor, and None for new ones.
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
    """Returns how many dimensions of a tensor an item of an index applies to."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return len(part.shape) if _is_mask(part) else 1


def _is_mask(part: Any) -> bool:
    return isinstance(part, bool) or getattr(part, "dtype", None) in (torch.bool, torch.uint8)


def _is_number(part: Any) -> bool:
    """Whether an item of an index selects one entry, like an integer."""
    return not _is_mask(part) and not getattr(part, "shape", ())
