"""Lightning's hooks around validation and test runs, as two."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_callbacks.flavors import Callback
from lightning_callbacks.stage_runs import StageRuns

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class WatchedRuns(Callback):
    """A callback that does the same in validation runs and in test runs.

    Args:
        validation: What is kept of the validation runs.
        test: What is kept of the test runs.
    """

    def __init__(self, validation: StageRuns, test: StageRuns) -> None:
        super().__init__()
        self._validation = validation
        self._test = test

    @abstractmethod
    def _begin(self, trainer: Trainer, module: LightningModule, runs: StageRuns) -> None:
        """A run begins; sanity checks don't count."""

    @abstractmethod
    def _see(
        self,
        trainer: Trainer,
        module: LightningModule,
        runs: StageRuns,
        batch: Any,
        dataloader_idx: int,
    ) -> None:
        """A batch of a run has been evaluated."""

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin(trainer, pl_module, self._validation)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, self._test)

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
        if not trainer.sanity_checking:
            self._see(trainer, pl_module, self._validation, batch, dataloader_idx)

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
        self._see(trainer, pl_module, self._test, batch, dataloader_idx)
