"""The index: the shard and the row of each sample.

It is a summary of the shards, kept in ``index.parquet`` for queries. Shards that
are not in it yet are read themselves, so it may be old, missing or damaged: it can always be
created again from them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from captum_transformer.errors import DamagedDataError
from lightning_callbacks.data_sets.checksums import checksum_of
from lightning_callbacks.data_sets.packages import required
from lightning_callbacks.data_sets.shards import COLUMNS, check_shard, read_columns
from lightning_callbacks.shared.atomic import written

FILE = "index.parquet"
"""The index's name in the folder."""

_SHARDS = "shards"
_PLACE = ("shard", "bytes", "offset")
_CHECKSUM = b"checksum"


def shards_of(folder: Path) -> Path:
    """Returns the folder with the shards of a folder with explanations."""
    return folder / _SHARDS


@dataclass(frozen=True)
class Index:
    """One row for each sample, in the order of their ids.

    Attributes:
        columns: The columns of a shard, ``shard`` (the file's name), ``bytes`` (its size) and
            ``offset`` (the row in the shard), each ``(samples,)``.
    """

    columns: dict[str, npt.NDArray[Any]]

    @classmethod
    def empty(cls) -> Index:
        """Returns the index of a folder without shards."""
        columns = {name: torch.zeros(0, dtype=dtype).numpy() for name, dtype in COLUMNS.items()}
        place = (np.zeros(0, np.str_), np.zeros(0, np.int64), np.zeros(0, np.int64))
        return cls(columns | dict(zip(_PLACE, place, strict=True)))

    @property
    def sample_ids(self) -> npt.NDArray[np.int64]:
        """The ids of all samples, ascending."""
        return self.columns["sample_id"]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def row(self, sample_id: int) -> int:
        """Returns the row of a sample.

        Args:
            sample_id: Its id.

        Returns:
            The row's number.

        Raises:
            KeyError: If the sample has no explanation.
        """
        row = int(np.searchsorted(self.sample_ids, sample_id))
        if row == len(self) or self.sample_ids[row] != sample_id:
            raise KeyError(f"There is no explanation of the sample {sample_id}.")
        return row


class Contents(NamedTuple):
    """The contents of a folder.

    Attributes:
        known: The samples that have been explained, each once, even if two shards hold it because
            processes have shared samples.
        broken: Shards that can't be used, and the reasons.
    """

    known: Index
    broken: dict[Path, str]


def read_contents(folder: Path, manifest: str) -> Contents:
    """Finds the samples of a folder in its index and in the shards that aren't in the index yet.

    Args:
        folder: The folder with the explanations.
        manifest: The checksum of its manifest.

    Returns:
        The samples. Of shards in the index, only the file's size is checked.
    """
    sizes = _sizes(folder)
    parts, broken = [], {}
    known = _read_parquet(folder / FILE)
    if known is not None:
        found = np.array([sizes.get(name, -1) for name in known["shard"].tolist()], np.int64)
        # The samples of a deleted shard are to be explained again.
        parts.append(_chosen(known, found == known["bytes"]))
        for name in np.unique(known["shard"][(found >= 0) & (found != known["bytes"])]).tolist():
            path = shards_of(folder) / name
            broken[path] = f"{path} is damaged (it has another size than in the index)."
        sizes = {name: sizes[name] for name in sizes.keys() - set(known["shard"].tolist())}
    more, damaged = _read_shards(folder, sizes, manifest, thorough=False)
    return Contents(_joined(parts + more), broken | damaged)


def check_contents(folder: Path, manifest: str) -> Contents:
    """Reads all shards completely, and finds the samples that are unchanged.

    Args:
        folder: The folder with the explanations.
        manifest: The checksum of its manifest.

    Returns:
        The samples, according to the shards alone.
    """
    parts, broken = _read_shards(folder, _sizes(folder), manifest, thorough=True)
    return Contents(_joined(parts), broken)


def write_index(folder: Path, index: Index) -> None:
    """Writes ``index.parquet``, atomically.

    Args:
        folder: The folder with the explanations.
        index: The index.
    """
    table = required("pyarrow").table(index.columns)
    table = table.replace_schema_metadata({_CHECKSUM: _checksum(index.columns)})
    with written(folder / FILE) as unfinished:
        required("pyarrow.parquet").write_table(table, unfinished)


def _sizes(folder: Path) -> dict[str, int]:
    paths = sorted(shards_of(folder).glob("*.safetensors"))
    return {path.name: path.stat().st_size for path in paths}


def _read_shards(
    folder: Path, sizes: dict[str, int], manifest: str, *, thorough: bool
) -> tuple[list[dict[str, npt.NDArray[Any]]], dict[Path, str]]:
    parts, broken = [], {}
    read = check_shard if thorough else read_columns
    for name in sorted(sizes):
        path = shards_of(folder) / name
        try:
            columns = {key: values.numpy() for key, values in read(path, manifest).items()}
        except DamagedDataError as error:
            broken[path] = str(error)
            continue
        count = len(columns["sample_id"])
        place = (np.full(count, name), np.full(count, sizes[name]), np.arange(count))
        parts.append(columns | dict(zip(_PLACE, place, strict=True)))
    return parts, broken


def _read_parquet(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    if not path.is_file():
        return None
    try:
        table = required("pyarrow.parquet").read_table(path)
        columns = {name: table[name].to_numpy() for name in (*COLUMNS, "bytes", "offset")}
        columns["shard"] = np.array(table["shard"].to_pylist(), dtype=np.str_)
        if (table.schema.metadata or {}).get(_CHECKSUM) != _checksum(columns):
            raise DamagedDataError("its content has changed")
    except PermissionError:
        raise
    # A Parquet reader may raise any error for damaged bytes.
    except Exception as error:
        warnings.warn(
            f"{path} is damaged ({error}), so the shards are read instead. Run the prediction "
            "again, which rewrites it, or delete it.",
            stacklevel=2,
        )
        return None
    return columns


def _checksum(columns: dict[str, npt.NDArray[Any]]) -> bytes:
    numbers = [torch.from_numpy(columns[name].copy()) for name in (*COLUMNS, "bytes", "offset")]
    return str(checksum_of([*numbers, *columns["shard"].tolist()])).encode()


def _joined(parts: list[dict[str, npt.NDArray[Any]]]) -> Index:
    empty = Index.empty().columns
    columns = {name: np.concatenate([part[name] for part in (empty, *parts)]) for name in empty}
    # Sorted by shard, too, so that the same one of two rows is kept each time.
    order = np.lexsort((columns["shard"], columns["sample_id"]))
    ids = columns["sample_id"][order]
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[1:] != ids[:-1]
    return Index(_chosen(columns, order[first]))


def _chosen(
    columns: dict[str, npt.NDArray[Any]], rows: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    return {name: values[rows] for name, values in columns.items()}
