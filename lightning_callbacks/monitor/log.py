"""Passes the explanations of each process to the trainer's loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning_callbacks.loggers import Publisher
from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.monitor.sharing import Collected, Mailbox
from lightning_callbacks.samples.fixed import Share
from lightning_callbacks.shared.failures import Failures

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class Log:
    """Passes the entries of one process or of all processes to the loggers.

    Args:
        trainer: The trainer, at its setup.
        layout: The charts for TensorBoard's page of custom scalars.
        failures: What happens if a logger fails.
        take: Called with the entries of each process.
        share: Whether all processes explain, or only the first one.
    """

    def __init__(
        self,
        trainer: Trainer,
        layout: dict[str, Any],
        failures: Failures,
        take: Callable[[LogEntries], None],
        *,
        share: bool,
    ) -> None:
        self._trainer = trainer
        self._layout = layout
        self._failures = failures
        shared = share and trainer.world_size > 1
        self.share = Share(trainer.global_rank, trainer.world_size) if shared else Share()
        self.takes_part = shared or trainer.is_global_zero
        self._mailbox = Mailbox.open(trainer) if shared else None
        self._collected = Collected(self.share.world_size, take)
        self._publisher: Publisher | None = None

    def share_of(self, loaders: Any) -> Share:
        """Returns which samples of a loader this process explains.

        Args:
            loaders: The trainer's loaders, of which the first one is explained.

        Returns:
            The share.
        """
        loader = _first(loaders)
        distributed = hasattr(getattr(loader, "sampler", None), "num_replicas")
        return Share(self.share.rank, self.share.world_size, distributed=distributed)

    def add(self, entries: LogEntries) -> None:
        """Logs the entries of this process, or sends them to the first process.

        Args:
            entries: Pictures and numbers of one run.
        """
        with self._failures.tolerated("log the explanations"):
            if self._trainer.is_global_zero:
                self._collected.add(entries, self._publish())
            elif self._mailbox is not None:
                self._mailbox.send(entries)

    def collect(self) -> None:
        """Logs the entries that other processes have sent."""
        if self._mailbox is not None and self._trainer.is_global_zero:
            with self._failures.tolerated("log the explanations of other processes"):
                for entries in self._mailbox.receive():
                    self._collected.add(entries, self._publish())

    def finish(self) -> None:
        """Waits for the other processes for a limited time, and logs their entries."""
        if self._mailbox is None:
            return
        if self._trainer.is_global_zero:
            with self._failures.tolerated("log the explanations of other processes"):
                missing = self._collected.finish(self._mailbox, self._publish())
                if missing:
                    self._failures.warn_once(
                        "missing", f"{missing} parts of other processes are missing in the log."
                    )
        self.abandon()

    def abandon(self) -> None:
        """Removes the entries of other processes."""
        if self._mailbox is not None:
            self._mailbox.close()

    def _publish(self) -> Publisher:
        if self._publisher is None:
            # Not created at the setup, since it starts the run of every logger.
            trainer = self._trainer
            self._publisher = Publisher(trainer.loggers, trainer.default_root_dir, self._failures)
            self._publisher.layout(self._layout)
        return self._publisher


def _first(loaders: Any) -> Any:
    """Returns the first loader, given in any of the forms in which Lightning takes several."""
    loaders = getattr(loaders, "iterables", loaders)
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return _first(loaders[0]) if loaders else None
    return loaders
