"""The index: which shard holds which sample, and where.

It is a summary of the shards, kept in ``index.parquet`` for whoever wants to query it. Shards that
are not in it yet are read themselves, so it may be old or missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_callbacks.data_sets.atomic import written
from lightning_callbacks.data_sets.packages import required
from lightning_callbacks.data_sets.shards import COLUMNS, read_columns

_FILE = "index.parquet"
_SHARDS = "shards"


def shards_of(folder: Path) -> Path:
    """Where the shards of a folder with explanations lie."""
    return folder / _SHARDS


@dataclass(frozen=True)
class Index:
    """One row for each sample, in the order of their ids.

    Attributes:
        columns: ``sample_id``, ``target``, ``prediction``, ``score``, ``shard`` (the file's name)
            and ``offset`` (the row in the shard), each ``(samples,)``.
    """

    columns: dict[str, npt.NDArray[Any]]

    @property
    def sample_ids(self) -> npt.NDArray[np.int64]:
        """The ids of all samples, ascending."""
        return self.columns["sample_id"]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def row(self, sample_id: int) -> int:
        """The row of a sample.

        Args:
            sample_id: Its id.

        Returns:
            The row's number.

        Raises:
            KeyError: If the sample is not there.
        """
        row = int(np.searchsorted(self.sample_ids, sample_id))
        if row == len(self) or self.sample_ids[row] != sample_id:
            raise KeyError(f"There is no explanation of the sample {sample_id}.")
        return row


def read_index(folder: Path) -> Index:
    """Finds out which samples a folder holds.

    Args:
        folder: The folder with the explanations.

    Returns:
        The index. A sample that lies in two shards, as processes write that share samples, is in
        it once.
    """
    files = sorted(path.name for path in shards_of(folder).glob("*.safetensors"))
    parts = []
    if (folder / _FILE).is_file():
        known = _read_parquet(folder / _FILE)
        # Whoever deletes a shard wants its samples to be explained anew.
        parts.append(_chosen(known, np.isin(known["shard"], files)))
        files = sorted(set(files) - set(known["shard"].tolist()))
    parts += [_of_shard(shards_of(folder) / name) for name in files]
    return _joined(parts)


def write_index(folder: Path, index: Index) -> None:
    """Writes ``index.parquet``, atomically.

    Args:
        folder: The folder with the explanations.
        index: The index.
    """
    table = required("pyarrow").table(index.columns)
    with written(folder / _FILE) as unfinished:
        required("pyarrow.parquet").write_table(table, unfinished)


def _read_parquet(path: Path) -> dict[str, npt.NDArray[Any]]:
    table = required("pyarrow.parquet").read_table(path)
    columns = {name: table[name].to_numpy() for name in (*COLUMNS, "offset")}
    columns["shard"] = np.array(table["shard"].to_pylist(), dtype=np.str_)
    return columns


def _of_shard(path: Path) -> dict[str, npt.NDArray[Any]]:
    columns: dict[str, npt.NDArray[Any]] = {
        name: values.numpy() for name, values in read_columns(path).items()
    }
    count = len(columns["sample_id"])
    return columns | {"shard": np.full(count, path.name), "offset": np.arange(count)}


def _joined(parts: list[dict[str, npt.NDArray[Any]]]) -> Index:
    empty = {name: torch.zeros(0, dtype=dtype).numpy() for name, dtype in COLUMNS.items()}
    empty |= {"shard": np.zeros(0, np.str_), "offset": np.zeros(0, np.int64)}
    columns = {name: np.concatenate([part[name] for part in (empty, *parts)]) for name in empty}
    # By shard first, so that of two rows the same one is kept each time.
    order = np.lexsort((columns["shard"], columns["sample_id"]))
    ids = columns["sample_id"][order]
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[1:] != ids[:-1]
    return Index(_chosen(columns, order[first]))


def _chosen(
    columns: dict[str, npt.NDArray[Any]], rows: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    return {name: values[rows] for name, values in columns.items()}
