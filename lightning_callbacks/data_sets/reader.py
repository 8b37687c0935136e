"""Reads the explanations of a data set back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_transformer.errors import DamagedDataError
from lightning_callbacks.data_sets.index import read_contents, shards_of, write_index
from lightning_callbacks.data_sets.manifest import CHECKSUM, read_manifest
from lightning_callbacks.data_sets.shards import ADVICE, read_attributions


class ExplainedSample(NamedTuple):
    """The explanation of one sample; a ``DataLoader`` makes batches of them.

    Attributes:
        sample_id: The sample's index in the data set that was explained.
        attributions: The attributions by input, each without a dimension for samples. The keys are
            the names of the model's arguments, or ``input_0``, ``input_1``, ... if the model was
            called with them by position.
        target: The class that is explained.
        prediction: The class with the highest score.
        score: The model's score of the target, as it comes out of the model.
    """

    sample_id: int
    attributions: dict[str, Tensor]
    target: int
    prediction: int
    score: float


class RelevanceDataset(Dataset[ExplainedSample]):
    """The explanations written by a `lightning_callbacks.RelevanceWriter`.

    They are in the order of the data set that was explained: item i belongs to its sample i.
    Only the index is kept in memory; an item is read from its shard when it is requested, and
    compared with its checksum.

    Args:
        folder: The writer's folder.
        partial: Accept that samples are missing. The items are then the existing explanations in
            the same order, and `of` finds the one of a sample.

    Raises:
        FileNotFoundError: If the folder holds no explanations.
        DamagedDataError: If a file is damaged, or belongs to other explanations; also when an item
            is read.
        ValueError: If samples are missing and `partial` is false.

    Example:
        >>> RelevanceDataset("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: There are no explanations in nowhere: it has no manifest.json...
    """

    def __init__(self, folder: str | Path, *, partial: bool = False) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise FileNotFoundError(
                f"There are no explanations in {folder}: it has no manifest.json, with which a "
                "RelevanceWriter begins."
            )
        self.manifest: dict[str, Any] = manifest
        self._index, broken = read_contents(self.folder, manifest[CHECKSUM])
        if broken:
            raise DamagedDataError("\n".join([*broken.values(), ADVICE]))
        count = manifest["samples"]
        if len(self) < count and not partial:
            raise ValueError(
                f"{count - len(self)} of {count} samples are missing in {folder}. Run the "
                "prediction again, which explains only these, or pass partial=True to take what is "
                "there."
            )

    @property
    def sample_ids(self) -> Tensor:
        """The ids of the explained samples in ascending order, ``(samples,)``."""
        return torch.from_numpy(self._index.sample_ids)

    @property
    def targets(self) -> Tensor:
        """The classes that are explained ``(samples,)``."""
        return torch.from_numpy(self._index.columns["target"])

    @property
    def predictions(self) -> Tensor:
        """The classes with the highest scores ``(samples,)``."""
        return torch.from_numpy(self._index.columns["prediction"])

    @property
    def scores(self) -> Tensor:
        """The model's scores of the targets ``(samples,)``."""
        return torch.from_numpy(self._index.columns["score"])

    @property
    def non_finite(self) -> Tensor:
        """The number of NaN or infinite values in each sample's maps and score, ``(samples,)``."""
        return torch.from_numpy(self._index.columns["non_finite"])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: int) -> ExplainedSample:
        row = range(len(self))[item]
        columns = self._index.columns
        path = shards_of(self.folder) / str(columns["shard"][row])
        return ExplainedSample(
            int(columns["sample_id"][row]),
            read_attributions(path, int(columns["offset"][row]), int(columns["checksum"][row])),
            int(columns["target"][row]),
            int(columns["prediction"][row]),
            float(columns["score"][row]),
        )

    def of(self, sample_id: int) -> ExplainedSample:
        """Returns the explanation of a sample.

        Args:
            sample_id: Its index in the data set that was explained.

        Returns:
            The explanation.

        Raises:
            KeyError: If the sample has no explanation.
        """
        return self[self._index.row(sample_id)]

    def save_index(self) -> None:
        """Rewrites ``index.parquet``, from the shards if the existing one can't be used."""
        write_index(self.folder, self._index)
