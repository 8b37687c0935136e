"""Combines Lightning's hooks for validation runs with those for test runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_callbacks.monitor.stage_runs import StageRuns
from lightning_callbacks.monitor.watch import Watch, Watches
from lightning_callbacks.shared.flavors import Callback

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class WatchedRuns(Callback):
    """A callback that does the same in validation runs and in test runs.

    Args:
        new: Creates the state of a trainer.
    """

    def __init__(self, new: Callable[[], Watch]) -> None:
        super().__init__()
        self._watches = Watches(new)

    @abstractmethod
    def _try(
        self,
        trainer: Trainer,
        module: LightningModule,
        watch: Watch,
        batch: Any,
        dataloader_idx: int,
    ) -> None:
        """Called after a batch of the sanity check."""

    @abstractmethod
    def _begin(
        self, trainer: Trainer, module: LightningModule, watch: Watch, runs: StageRuns
    ) -> None:
        """Called at the start of a run that isn't a sanity check."""

    @abstractmethod
    def _see(
        self,
        trainer: Trainer,
        module: LightningModule,
        watch: Watch,
        runs: StageRuns,
        batch: Any,
        dataloader_idx: int,
    ) -> None:
        """Called after a batch of a run."""

    @abstractmethod
    def _end(self, trainer: Trainer, watch: Watch, runs: StageRuns) -> None:
        """Called at the end of a run."""

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch = self._watches.of(trainer)
        if watch is not None and not trainer.sanity_checking:
            self._begin(trainer, pl_module, watch, watch.validation)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (watch := self._watches.of(trainer)) is not None:
            self._begin(trainer, pl_module, watch, watch.test)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Here and not at the end of the run: weight averaging swaps its weights in for the run.
        if (watch := self._watches.of(trainer)) is None:
            return
        if trainer.sanity_checking:
            self._try(trainer, pl_module, watch, batch, dataloader_idx)
        else:
            self._see(trainer, pl_module, watch, watch.validation, batch, dataloader_idx)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if (watch := self._watches.of(trainer)) is not None:
            self._see(trainer, pl_module, watch, watch.test, batch, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch = self._watches.of(trainer)
        if watch is not None and not trainer.sanity_checking:
            self._end(trainer, watch, watch.validation)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (watch := self._watches.of(trainer)) is not None:
            self._end(trainer, watch, watch.test)
