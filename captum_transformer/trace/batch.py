"""Samples of a batch, and where they lie in a tensor."""

from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_transformer.trace.axis import Axis, View


class Batch(NamedTuple):
    """Samples that follow each other, and where each of them lies in a value.

    Every entry belongs to one of them: it depends on the inputs of this sample alone.

    Attributes:
        first: the first of them.
        axis: where they lie; all of the value if there is but one.
        of: how many samples there are in all.
    """

    first: int
    axis: Axis
    of: int

    @property
    def is_whole(self) -> bool:
        """Whether all samples are there."""
        return self.axis.size == self.of

    @property
    def last(self) -> int:
        """The last of them."""
        return self.first + self.axis.size - 1

    def numbers(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The number of each entry's sample, counted from one."""
        counted = torch.arange(1, self.axis.size + 1, dtype=dtype, device=device)
        return self.axis.spread(self.first + counted, shape).contiguous()

    def in_view(self, view: View) -> "Batch | None":
        """The samples in a view of a contiguous tensor; None if they don't lie side by side.

        >>> import torch
        >>> batch = Batch(0, Axis.of((3, 4), dim=0), of=3)
        >>> batch.in_view(View.of(torch.empty(3, 4)[1:].t()))
        Batch(first=1, axis=Axis(outer=4, size=2, inner=1), of=3)
        >>> batch.in_view(View.of(torch.empty(3, 4)[2]))
        Batch(first=2, axis=Axis(outer=1, size=1, inner=4), of=3)
        >>> batch.in_view(View.of(torch.empty(3, 4).diagonal())) is None
        True
        """
        return _in_view(self, view)


# The layers of a model ask the same of the same shapes, so answers are kept.
@lru_cache(maxsize=4096)
def placed(batch: Batch, axis: Axis) -> Batch:
    """The same samples, somewhere else."""
    return Batch(batch.first, axis, batch.of)


@lru_cache(maxsize=4096)
def _in_view(batch: Batch, view: View) -> Batch | None:
    found = _found_in_view(batch.axis, view)
    return None if found is None else Batch(batch.first + found[0], found[1], batch.of)


def _found_in_view(axis: Axis, view: View) -> tuple[int, Axis] | None:
    """The first index of an axis in a view, and where it and those that follow lie."""
    if axis.size == 1:
        return 0, Axis(1, 1, view.numel())
    if not view.numel():
        return None  # nothing is left of it, as of features behind those that are rotated
    end = axis.inner * axis.size
    if view.is_contiguous() and view.offset == 0 and view.numel() == axis.outer * end:
        return 0, axis
    along, step, within = None, axis.inner, view.offset % axis.inner
    for dim, (length, stride) in enumerate(zip(view.shape, view.stride, strict=True)):
        if length == 1 or stride % end == 0:
            continue
        if along is None and stride <= axis.inner < stride * length and not axis.inner % stride:
            along, step = dim, stride
        else:
            within += stride * (length - 1)
    start = view.offset // axis.inner % axis.size
    if within >= step:
        return None
    if along is None:
        return start, Axis(1, 1, view.numel())
    per_index = axis.inner // step
    count, rest = divmod(view.shape[along], per_index)
    # Some of the indices, or all of them once or several times over.
    size = axis.size if start == 0 and count % axis.size == 0 else count
    if rest or start + size > axis.size:
        return None
    inner = per_index * prod(view.shape[along + 1 :])
    return start, Axis(view.numel() // size // inner, size, inner)


class Whole(NamedTuple):
    """The dimension that an axis is a part of.

    Attributes:
        axis: the dimension.
        outer: how often all of the part's indices follow each other in it.
        inner: how many entries of it follow each other for each of them.
    """

    axis: Axis
    outer: int
    inner: int

    def part(self, whole: Axis | None, size: int) -> Axis | None:
        """The part of the dimension where that lies in another tensor."""
        return whole and Axis(whole.outer * self.outer, size, whole.inner * self.inner)


@lru_cache(maxsize=4096)
def dimension_of(axis: Axis, shape: tuple[int, ...]) -> Whole | None:
    """The dimension of a tensor that an axis is a part of; None if it runs over several.

    >>> dimension_of(Axis(outer=2, size=3, inner=8), (6, 8))
    Whole(axis=Axis(outer=1, size=6, inner=8), outer=2, inner=1)
    """
    for dim, length in enumerate(shape):
        step = prod(shape[dim + 1 :])
        inner, outer = axis.inner // step if step else 0, length // axis.size
        inside = step * inner == axis.inner > 0 and length % (axis.size * inner) == 0
        if length > 1 and inside:
            return Whole(Axis.of(shape, dim), outer // inner, inner)
    return None


@lru_cache(maxsize=4096)
def runs_along(axis: Axis, shape: tuple[int, ...], dim: int) -> bool:
    """Whether entries along a dimension belong to more than one index of an axis.

    >>> [runs_along(Axis.of((6, 4), dim=0, size=2), (6, 4), dim) for dim in (0, 1)]
    [True, False]
    """
    step = prod(shape[dim + 1 :])
    return shape[dim] > 1 and step < axis.inner * axis.size and step * shape[dim] > axis.inner


def located(numbers: Tensor, constant: Tensor, of: int) -> Batch | None:
    """Where samples lie in a tensor that holds the number of each entry's sample.

    Args:
        numbers: counted from one.
        constant: which entries belong to no sample.
        of: how many samples there are in all.

    >>> numbers = torch.tensor([[1.0, 1], [2, 2], [1, 1], [2, 2]])
    >>> located(numbers, numbers == 0, of=2)
    Batch(first=0, axis=Axis(outer=2, size=2, inner=2), of=2)
    """
    # On the host, where looking at entries waits for nothing.
    found, free = numbers.cpu().numpy(), constant.cpu().numpy()
    present = found[~free]
    if not present.size:
        return None
    first, last = int(present.min()), int(present.max())
    for axis in _axes(found.shape, last - first + 1):
        counted = np.arange(first, last + 1, dtype=found.dtype).reshape(1, -1, 1)
        expected = np.broadcast_to(counted, axis).reshape(found.shape)
        if (free | (found == expected)).all():
            return Batch(first - 1, axis, of)
    return None


def _axes(shape: tuple[int, ...], size: int) -> Iterator[Axis]:
    """All axes of a size that a tensor's dimensions are made of."""
    if size == 1:
        yield Axis(1, 1, prod(shape))
        return
    for dim, length in enumerate(shape):
        behind = length // size if length % size == 0 else 0
        for inner in range(1, behind + 1):
            if behind % inner == 0:
                inner_size = inner * prod(shape[dim + 1 :])
                yield Axis(prod(shape) // size // inner_size, size, inner_size)
