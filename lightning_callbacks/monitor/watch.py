"""The state of a callback for each trainer; one callback may be used by several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.monitor.log import Log
from lightning_callbacks.monitor.stage_runs import StageRuns


@dataclass
class Watch:
    """The state of the runs of one trainer.

    Attributes:
        validation: The state of the validation runs.
        test: The state of the test runs.
        trainer: The trainer, or None before its setup.
        log: Passes entries to its loggers, between setup and teardown.
        outer: The watch of the trainer during whose run this trainer runs, or None.
        tried: Whether the model has been tried on a sample before the training.
        means: The numbers that were logged last, for the trainer's ``callback_metrics``.
    """

    validation: StageRuns
    test: StageRuns
    trainer: Any = None
    log: Log | None = None
    outer: Watch | None = None
    tried: bool = False
    means: dict[str, Tensor] = field(default_factory=dict)

    def take(self, entries: LogEntries) -> None:
        """Stores the identities and scales of a process's part of a run for the checkpoint.

        Args:
            entries: The part.
        """
        of_test = entries.run.startswith(f"{self.test.stage}/")
        (self.test if of_test else self.validation).take(entries)


class Watches:
    """Keeps the runs of several trainers apart.

    Trainers that run one after the other, such as for the folds of a cross-validation, each start
    with a new state. If a trainer validates while another trains, their states are separate.

    Args:
        new: Creates the state of a trainer.

    Example:
        >>> watches = Watches(lambda: Watch(StageRuns("validate", "a"), StageRuns("test", "b")))
        >>> trainer, other = object(), object()
        >>> first = watches.enter(trainer)
        >>> watches.enter(trainer) is first, watches.enter(other) is first
        (True, False)
    """

    def __init__(self, new: Callable[[], Watch]) -> None:
        self._new = new
        self.current = new()

    def enter(self, trainer: Any) -> Watch:
        """Begins to watch a trainer, at its setup.

        Args:
            trainer: The trainer.

        Returns:
            The state of the trainer.
        """
        current = self.current
        if current.trainer is not None and current.trainer is not trainer:
            self.current = self._new()
            if current.log is not None:
                self.current.outer = current
        self.current.trainer = trainer
        return self.current

    def of(self, trainer: Any) -> Watch | None:
        """Returns the state of a trainer, or None for a trainer that explains nothing.

        Args:
            trainer: The trainer.
        """
        current = self.current
        return current if current.trainer is trainer and current.log is not None else None

    def leave(self, watch: Watch) -> None:
        """Stops watching a trainer that has finished.

        Args:
            watch: The state of the trainer.
        """
        watch.log = None
        if watch.outer is not None:
            self.current, watch.outer = watch.outer, None
