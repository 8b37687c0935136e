"""Writes the explanations of a whole data set to disk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_callbacks.data_sets.checks import (
    check_prediction,
    from_first_process,
    hooks_of,
    loader_of,
    number_of_samples,
)
from lightning_callbacks.data_sets.explaining import ExplainedBatch
from lightning_callbacks.data_sets.folder import WritersFolder
from lightning_callbacks.data_sets.index import read_contents, shards_of
from lightning_callbacks.data_sets.manifest import CHECKSUM, read_manifest
from lightning_callbacks.data_sets.order import (
    BatchToIds,
    read_ids,
    require_batches_in_order,
    require_ids,
    require_order,
)
from lightning_callbacks.data_sets.packages import required
from lightning_callbacks.data_sets.remaining import Progress, RemainingSamples
from lightning_callbacks.data_sets.shards import write_shard
from lightning_callbacks.explanations.checks import check_at_least_one
from lightning_callbacks.shared.flavors import BasePredictionWriter, MisconfigurationException

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class RelevanceWriter(BasePredictionWriter):
    """Writes the explanations of an `ExplainerModule` under ``Trainer.predict``.

    The folder contains

    - ``shards/*.safetensors``: the attributions, with sample id, target, prediction and score;
    - ``index.parquet``: one row per sample with the same columns, its shard and its offset there;
    - ``manifest.json``: the method and its arguments, the model's structure and a hash of its
      weights, versions.

    `lightning_callbacks.RelevanceDataset` reads them back. Files are written
    atomically, so if a run is killed, only the batches that weren't written yet are lost. Run it
    again, with any number of processes, to explain the samples that are missing or damaged; with a
    different method or model this is refused.

    A sample's id is its index in the data set. The loader knows which samples it requested, but not
    which of them a ``collate_fn`` has sorted or dropped: a collate function that isn't PyTorch's
    own is tested on the first batch, and refused unless it keeps all samples in their places.

    All processes must have access to the folder. A second run that writes into it at the same time
    is refused.

    Args:
        folder: The folder to write to, in a mounted file system.
        every_n_batches: The number of batches in a shard. A batch whose attributions have a
            different shape, such as texts padded to another length, begins a new shard.
        ids: The samples' indices in the data set: the name of an entry of the batch, or a function
            that reads them from the batch. With it, ``collate_fn`` may sort and drop samples.
        collate_keeps_order: Set this if ``collate_fn`` and hooks are known to keep all samples in
            their places, for those that draw random numbers and can't be tested.
        notes: Further information that identifies the explanations, for the manifest, such as
            ``{"data": "validation set of March"}``.

    Raises:
        MisconfigurationException: If an argument is invalid; during prediction if the folder
            belongs to other explanations or another run writes into it, or the trainer isn't
            supported.
        DamagedDataError: During prediction, if the folder's manifest is damaged.
        ModuleNotFoundError: If safetensors or pyarrow is missing.

    Example:
        >>> writer = RelevanceWriter("explanations", every_n_batches=8)
        >>> len(writer.remaining(torch.utils.data.TensorDataset(torch.rand(5, 3))))
        5
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_batches: int = 1,
        *,
        ids: BatchToIds | None = None,
        collate_keeps_order: bool = False,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__("batch")
        check_at_least_one("every_n_batches", every_n_batches)
        for module in ("safetensors.torch", "pyarrow.parquet"):
            required(module)
        if "://" in str(folder):
            raise MisconfigurationException(
                f"RelevanceWriter writes to file systems that are mounted, got {folder}. Mount it, "
                "or copy the folder there when it is complete."
            )
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise MisconfigurationException(
                f"RelevanceWriter writes a folder, but {folder} is a file. Choose another path."
            )
        self.every_n_batches = every_n_batches
        self.ids = ids
        self.collate_keeps_order = collate_keeps_order
        self.notes = dict(notes or {})
        self._in_order = False
        self._batch_ids: list[int] = []
        self._progress: Progress | None = None
        self._opened: WritersFolder | None = None
        self._manifest = ""
        self._waiting: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def remaining(self, dataset: Sized) -> RemainingSamples:
        """The samples that are not explained yet: a sampler for the ``DataLoader``.

        Without it, a resumed run loads all samples, and explains only those that are
        missing.

        Args:
            dataset: The data set.

        Returns:
            The sampler. It determines the missing samples when prediction begins.
        """
        return RemainingSamples(len(dataset), self._so_far)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the existing explanations, in the first process for all.

        Args:
            trainer: The trainer.
            pl_module: An `ExplainerModule`.
            stage: The stage of the trainer.
        """
        if stage != "predict":
            return
        super().setup(trainer, pl_module, stage)
        check_prediction(trainer, pl_module)
        self._waiting.clear()
        self._release()
        self._in_order = self.collate_keeps_order
        self._progress = from_first_process(trainer, lambda: self._open(trainer.world_size))

    def _open(self, processes: int) -> Progress:
        self._opened = WritersFolder(self.folder)
        return Progress(self._opened.contents.known.sample_ids, processes)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the manifest with the one in the folder, or writes a new one.

        Args:
            trainer: The trainer.
            pl_module: The module, with its weights loaded.
        """
        samples = number_of_samples(trainer)
        if self.ids is None:
            require_batches_in_order(loader_of(trainer))
        self._manifest = from_first_process(
            trainer, lambda: self._begin(trainer, pl_module, samples)
        )

    def _begin(self, trainer: Trainer, module: Any, samples: int) -> str:
        assert self._opened is not None, "Lightning calls setup first"
        return self._opened.begin(
            {
                "samples": samples,
                **module.manifest(),
                "precision": str(trainer.precision),
                "notes": self.notes,
            }
        )

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Determines the samples of the batch, and passes the missing ones to the module.

        Args:
            trainer: The trainer.
            pl_module: The module.
            batch: The batch.
            batch_idx: Not used.
            dataloader_idx: Not used: there is only one.
        """
        if self.ids is None:
            ids = self._ids_by_loader(trainer, pl_module)
        else:
            ids = read_ids(batch, self.ids, number_of_samples(trainer))
        done = np.isin(ids, self._known().done)
        self._batch_ids = ids
        pl_module.rows = np.flatnonzero(~done).tolist()
        pl_module.samples = len(ids)

    def _ids_by_loader(self, trainer: Trainer, pl_module: Any) -> list[int]:
        ids = list(trainer.predict_loop.current_batch_indices)
        if not ids:
            raise MisconfigurationException(
                "The loader doesn't report which samples are in its batches, so their "
                "explanations would have no ids. Pass a torch DataLoader over a data set with a "
                "length and indices, or specify with ids= where a batch has them."
            )
        require_ids(ids, number_of_samples(trainer), "The loader's sampler")
        # A single sample has no order.
        if not self._in_order and len(ids) > 1:
            require_order(loader_of(trainer), ids, hooks_of(trainer, pl_module))
            self._in_order = True
        return ids

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: ExplainedBatch,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not prediction.rows:
            return
        columns = {
            "sample_id": torch.tensor([self._batch_ids[row] for row in prediction.rows]),
            "target": prediction.target,
            "prediction": prediction.prediction,
            "score": prediction.score,
        }
        if self._waiting and _form(self._waiting[0][0]) != _form(prediction.attributions):
            self._write()
        self._waiting.append((prediction.attributions, columns))
        if len(self._waiting) >= self.every_n_batches:
            self._write()

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Writes the remaining explanations, and the index when all processes are done.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
        self._write()
        pl_module.rows = pl_module.samples = None
        trainer.strategy.barrier("the shards of all processes")
        if self._opened is not None:
            missing = number_of_samples(trainer) - self._opened.finish(self._manifest)
            if missing > 0 and trainer.limit_predict_batches == 1.0:
                warnings.warn(
                    f"{missing} samples have not been explained: the loader left them out, for "
                    "example because each process shuffles differently. Run the prediction "
                    "again with DataLoader(dataset, sampler=writer.remaining(dataset)).",
                    stacklevel=2,
                )

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Explanations that haven't been written yet are not lost.
        try:
            self._write()
        finally:
            self._release()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.release()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            attributions, columns = (
                {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                for parts in zip(*waiting, strict=True)
            )
            write_shard(shards_of(self.folder), attributions, columns, self._manifest)

    def _known(self) -> Progress:
        assert self._progress is not None, "Lightning calls setup first"
        return self._progress

    def _so_far(self) -> Progress:
        return self._progress or self._read_progress(1)

    def _read_progress(self, processes: int) -> Progress:
        manifest = read_manifest(self.folder)
        if manifest is None:
            return Progress(np.zeros(0, np.int64), processes)
        return Progress(read_contents(self.folder, manifest[CHECKSUM]).known.sample_ids, processes)


def _form(attributions: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: values.shape[1:] for name, values in attributions.items()}
