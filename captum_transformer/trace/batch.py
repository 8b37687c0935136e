"""Samples of a batch, and where they lie in a tensor."""

from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_transformer.calling import reading
from captum_transformer.trace.axis import Axis, View


class Batch(NamedTuple):
    """Consecutive samples, and where each of them lies in a value.

    Every entry belongs to one sample, and depends only on the inputs of that sample.

    Attributes:
        first: the index of the first sample.
        axis: the axis of the samples; spans the whole value if there is only one sample.
        of: the total number of samples.
    """

    first: int
    axis: Axis
    of: int

    @property
    def is_whole(self) -> bool:
        """Whether the value holds all samples."""
        return self.axis.size == self.of

    @property
    def last(self) -> int:
        """The index of the last sample."""
        return self.first + self.axis.size - 1

    def numbers(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns a tensor that holds the number of each entry's sample, counted from one."""
        counted = torch.arange(1, self.axis.size + 1, dtype=dtype, device=device)
        return self.axis.spread(self.first + counted, shape).contiguous()

    def in_view(self, view: View) -> "Batch | None":
        """Returns the samples in a view of a contiguous tensor, or None if they aren't an axis.

        >>> import torch
        >>> batch = Batch(0, Axis.of((3, 4), dim=0), of=3)
        >>> batch.in_view(View.of(torch.empty(3, 4)[1:].t()))
        Batch(first=1, axis=Axis(outer=4, size=2, inner=1), of=3)
        >>> batch.in_view(View.of(torch.empty(3, 4)[2]))
        Batch(first=2, axis=Axis(outer=1, size=1, inner=4), of=3)
        >>> batch.in_view(View.of(torch.empty(3, 4).diagonal())) is None
        True
        """
        found = self.axis.seen_in(view)
        return None if found is None else placed(self, found[1], found[0])


# The layers of a model repeat the same queries for the same shapes, so results are cached.
@lru_cache(maxsize=4096)
def placed(batch: Batch, axis: Axis, skipped: int = 0) -> Batch:
    """Returns the same samples along another axis, without the first ``skipped`` samples."""
    return Batch(batch.first + skipped, axis, batch.of)


def located(numbers: Tensor, of: int) -> Batch | None:
    """Finds the samples in a tensor that holds the number of each entry's sample.

    Args:
        numbers: the numbers, counted from one; zero for entries that belong to no sample.
        of: the total number of samples.

    >>> numbers = torch.tensor([[1.0, 1], [2, 2], [1, 1], [2, 2]])
    >>> located(numbers, of=2)
    Batch(first=0, axis=Axis(outer=2, size=2, inner=2), of=2)
    """
    # On the host, where reading entries needs no synchronization.
    found = reading.numbers(numbers, "which entries belong to which sample")
    free = found == 0
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
    """Yields all axes of a given size that are a part of a tensor's dimensions."""
    if size == 1:
        yield Axis(1, 1, prod(shape))
        return
    for dim, length in enumerate(shape):
        behind = length // size if length % size == 0 else 0
        for inner in range(1, behind + 1):
            if behind % inner == 0:
                inner_size = inner * prod(shape[dim + 1 :])
                yield Axis(prod(shape) // size // inner_size, size, inner_size)
