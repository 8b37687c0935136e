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
        validation: What is kept of the validation runs.
        test: What is kept of the test runs.
        trainer: The trainer, once there is one.
        log: The way to its loggers, between setup and teardown.
        outer: That of the trainer within whose run this one runs.
        tried: Whether a sample has been tried before the training.
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
        """Takes over what a checkpoint has to know of a process's part of a run.

        Args:
            entries: The part.
        """
        of_test = entries.run.startswith(f"{self.test.stage}/")
        (self.test if of_test else self.validation).take(entries)


class Watches:
    """Keeps the runs of several trainers apart.

    Trainers one after the other, as for the folds of a cross-validation, each begin anew. One that
    validates while another trains has runs of its own, and the other goes on with its own.

    Args:
        new: Makes what is kept of a trainer.

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
        """A trainer is set up.

        Args:
            trainer: The trainer.

        Returns:
            What is kept of it.
        """
        current = self.current
        if current.trainer is not None and current.trainer is not trainer:
            self.current = self._new()
            if current.log is not None:
                self.current.outer = current
        self.current.trainer = trainer
        return self.current

    def of(self, trainer: Any) -> Watch | None:
        """What is kept of a trainer; None of one that explains nothing.

        Args:
            trainer: The trainer.
        """
        current = self.current
        return current if current.trainer is trainer and current.log is not None else None

    def leave(self, watch: Watch) -> None:
        """A trainer has finished.

        Args:
            watch: What is kept of it.
        """
        watch.log = None
        if watch.outer is not None:
            self.current, watch.outer = watch.outer, None
