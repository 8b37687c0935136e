"""Passes the results of processes that share the samples to the one that logs.

There are no collective operations after the trainer's setup: each process writes its part to a
file and continues, and the first process reads the files. A process that fails or is late doesn't
block the others.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightning_callbacks.loggers import Publisher
from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.shared.flavors import MisconfigurationException

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

PATIENCE = 60.0
"""The seconds that the first process waits at the end for the parts of other processes."""


class Mailbox:
    """A folder in which processes leave their parts.

    Args:
        folder: A folder that all processes can access.
        rank: The process's number.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Mailbox(folder, 1).send(LogEntries("validate/0", 8))
        ...     Mailbox(folder, 0).receive()[0].step
        8
    """

    def __init__(self, folder: str | Path, rank: int) -> None:
        self.folder = Path(folder)
        self.rank = rank
        self._sent = 0

    @classmethod
    def open(cls, trainer: Trainer) -> Mailbox:
        """Creates the folder; every process has to call it at the trainer's setup.

        Args:
            trainer: The trainer, whose ``default_root_dir`` all nodes must be able to access.

        Returns:
            The mailbox of this process.

        Raises:
            MisconfigurationException: If ``default_root_dir`` isn't in a mounted file system.
        """
        if "://" in str(trainer.default_root_dir):
            raise MisconfigurationException(
                "share_samples=True lets processes leave files for each other in "
                f"default_root_dir, which must be mounted, got {trainer.default_root_dir}. Pass "
                "Trainer(default_root_dir=...) with a folder that all nodes see, or leave out "
                "share_samples."
            )
        folder = ""
        if trainer.is_global_zero:
            root = Path(trainer.default_root_dir)
            root.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix=".attribution_", dir=root)
        return cls(trainer.strategy.broadcast(folder), trainer.global_rank)

    def send(self, entries: LogEntries) -> None:
        """Writes entries to the folder, atomically.

        Args:
            entries: The entries of this process.
        """
        name = f"{self.rank:06d}_{self._sent:08d}"
        self._sent += 1
        unfinished = self.folder / f"{name}.unfinished"
        torch.save({**vars(entries), "numbers": dict(entries.numbers)}, unfinished)
        unfinished.rename(self.folder / f"{name}.part")

    def receive(self) -> list[LogEntries]:
        """Reads and removes the parts in the folder.

        Returns:
            The parts; those of each process are in the order in which it sent them.
        """
        parts = []
        for path in sorted(self.folder.glob("*.part")):
            fields = torch.load(path, weights_only=True)
            numbers = fields.pop("numbers")
            entries = LogEntries(**fields)
            entries.numbers.update(numbers)
            parts.append(entries)
            path.unlink()
        return parts

    def close(self) -> None:
        """Removes the folder, if this is the first process."""
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


class Collected:
    """Logs the parts of several processes: pictures at once, numbers when a run is complete.

    Args:
        world_size: The number of processes that have a part of each run.
        take: Also called with each part.
    """

    def __init__(self, world_size: int, take: Callable[[LogEntries], None]) -> None:
        self.world_size = world_size
        self._take = take
        self._open: dict[str, list[LogEntries]] = {}

    @property
    def waiting(self) -> bool:
        """Whether a part is missing for a run that another process has finished."""
        return bool(self._open)

    def add(self, entries: LogEntries, publisher: Publisher) -> None:
        """Logs the pictures of a part, and the numbers of its run if this was the last part.

        Args:
            entries: The part of a process.
            publisher: Writes to the loggers.
        """
        self._take(entries)
        publisher.pictures(entries)
        parts = self._open.setdefault(entries.run, [])
        parts.append(entries)
        if len(parts) == self.world_size:
            self._log(entries.run, publisher)

    def finish(self, mailbox: Mailbox, publisher: Publisher, patience: float = PATIENCE) -> int:
        """Waits for missing parts for a limited time, and logs the numbers of those that arrived.

        Args:
            mailbox: The mailbox to read from.
            publisher: Writes to the loggers.
            patience: The longest time to wait, in seconds.

        Returns:
            The number of parts that are missing.
        """
        end = time.monotonic() + patience
        while True:
            for entries in mailbox.receive():
                self.add(entries, publisher)
            if not self.waiting or time.monotonic() > end:
                break
            time.sleep(0.05)
        missing = sum(self.world_size - len(parts) for parts in self._open.values())
        for run in list(self._open):
            self._log(run, publisher)
        return missing

    def _log(self, run: str, publisher: Publisher) -> None:
        first, *others = self._open.pop(run)
        for other in others:
            first.merge(other)
        publisher.numbers(first)
