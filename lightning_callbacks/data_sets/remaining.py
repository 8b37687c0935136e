"""The samples that are not explained yet, for a ``DataLoader``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler


class Progress(NamedTuple):
    """The progress of explaining a data set.

    Attributes:
        done: The ids of the explained samples in ascending order.
        processes: The number of processes that explain the data set.
    """

    done: npt.NDArray[np.int64]
    processes: int


class RemainingSamples(Sampler[int]):
    """Yields the indices of the samples that are not explained yet, in ascending order.

    Lightning needs a sample for each process. If fewer are left, some explained samples are added,
    which are not explained again.

    Args:
        count: The number of samples in the data set.
        progress: Returns the progress. It is called when a loop begins, when all processes know it.

    Example:
        >>> list(RemainingSamples(5, lambda: Progress(np.array([0, 1, 3]), 1)))
        [2, 4]
    """

    def __init__(self, count: int, progress: Callable[[], Progress]) -> None:
        self.count = count
        self._progress = progress

    def _ids(self) -> list[int]:
        done, processes = self._progress()
        missing = np.setdiff1d(np.arange(self.count), done, assume_unique=True)
        others = done[done < self.count][: max(processes - len(missing), 0)]
        ids: list[int] = np.concatenate((missing, others)).tolist()
        return ids

    def __len__(self) -> int:
        return len(self._ids())

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids())
