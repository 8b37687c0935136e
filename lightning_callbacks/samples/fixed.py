"""The samples that are explained in each run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_callbacks.samples.batch import BatchToInputs, Samples, read_batch


@dataclass(frozen=True)
class Share:
    """The share of a data set's samples that a process explains.

    Attributes:
        rank: The process's number among those that share the samples.
        world_size: The number of these processes.
        distributed: Whether the processes load different samples in turns, as with a
            ``DistributedSampler``; otherwise each process loads all samples.
    """

    rank: int = 0
    world_size: int = 1
    distributed: bool = False

    def number(self, loaded: int) -> int | None:
        """Returns a sample's number in the data set.

        Args:
            loaded: The number of samples that the process has loaded before.

        Returns:
            The number, or None for a sample that another process explains.

        Example:
            >>> [Share(1, 2, distributed=True).number(loaded) for loaded in range(4)]
            [1, 3, 5, 7]
            >>> [Share(1, 2).number(loaded) for loaded in range(4)]
            [None, 1, None, 3]
        """
        if self.distributed:
            return loaded * self.world_size + self.rank
        return loaded if loaded % self.world_size == self.rank else None


class FixedSamples:
    """The first samples that a loader yields, kept on the CPU.

    Batches are kept apart, since texts of several batches differ in their padding.

    Args:
        count: The number of samples.
        share: The share of the samples that this process keeps.
        batch_to_inputs: Reads a batch, see `lightning_callbacks.samples.batch.read_batch`.

    Attributes:
        batches: The samples, batch by batch.
        numbers: The samples' numbers in the data set, batch by batch.
        complete: Whether all samples have been collected.

    Example:
        >>> fixed = FixedSamples(3)
        >>> batch = torch.arange(8.0).reshape(4, 2), torch.arange(4)
        >>> fixed.collect(batch, lambda x: x)
        >>> fixed.numbers, fixed.complete
        ([[0, 1, 2]], True)
    """

    def __init__(
        self,
        count: int,
        share: Share | None = None,
        batch_to_inputs: BatchToInputs | None = None,
    ) -> None:
        self.count = count
        self.share = share or Share()
        self.batch_to_inputs = batch_to_inputs
        self.batches: list[Samples] = []
        self.numbers: list[list[int]] = []
        self.complete = False
        self._loaded = 0

    @classmethod
    def of(
        cls,
        batch: Any,
        forward: Callable[..., Any],
        share: Share | None = None,
        batch_to_inputs: BatchToInputs | None = None,
    ) -> FixedSamples:
        """Creates fixed samples from all samples of a batch.

        Args:
            batch: The batch.
            forward: The function that will be given the inputs.
            share: Which of them this process keeps.
            batch_to_inputs: Reads the batch.

        Returns:
            The samples, complete.

        Raises:
            ValueError: If the batch can't be read.
        """
        fixed = cls(len(read_batch(batch, forward, batch_to_inputs)), share, batch_to_inputs)
        fixed.collect(batch, forward)
        return fixed

    def restart(self) -> None:
        """Discards the samples of an interrupted run, which would otherwise be collected twice."""
        if not self.complete:
            self.batches.clear()
            self.numbers.clear()
            self._loaded = 0

    def collect(self, batch: Any, forward: Callable[..., Any]) -> None:
        """Collects missing samples from a batch.

        Args:
            batch: The batch.
            forward: The function that will be given the inputs.

        Raises:
            ValueError: If the batch can't be read.
        """
        # Under `Trainer.validate` a batch consists of inference tensors, which have no gradients.
        with torch.inference_mode(mode=False), torch.no_grad():
            samples = read_batch(batch, forward, self.batch_to_inputs)
            numbered = [self.share.number(self._loaded + row) for row in range(len(samples))]
            rows = [
                row
                for row, number in enumerate(numbered)
                if number is not None and number < self.count
            ]
            if rows:
                self.batches.append(samples.select(rows).to("cpu"))
                self.numbers.append([n for n in numbered if n is not None and n < self.count])
        self._loaded += len(samples)
        share = self.share
        following = (
            self._loaded * share.world_size + share.rank if share.distributed else self._loaded
        )
        self.complete = following >= self.count

    def identity(self) -> dict[str, str]:
        """Returns a short fingerprint of each sample, which identifies it after a restart.

        Returns:
            Sixteen hexadecimal digits by the number of each sample, computed from its inputs only.
        """
        return {
            str(number): _fingerprint([values[row] for values in samples.inputs])
            for samples, numbers in zip(self.batches, self.numbers, strict=True)
            for row, number in enumerate(numbers)
        }


def _fingerprint(inputs: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in inputs:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
