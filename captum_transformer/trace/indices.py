"""Indices as torch reads them: lists, arrays and ranges pick entries, as tensors do."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

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
