"""Shards: safetensors files with the explanations of some samples, their targets and scores.

A shard has one tensor per input of the model, ``attribution.<input>``, and one per `COLUMNS` entry,
all with the samples in their first dimension. A sample has been explained if a shard holds it;
there is no other record of that.

A shard can be checked by itself: its metadata has the checksums of the folder's manifest and of
the columns, and one of the columns is the checksum of each sample's attributions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from captum_transformer.errors import DamagedDataError
from lightning_callbacks.data_sets.checksums import checksum_of
from lightning_callbacks.data_sets.packages import required
from lightning_callbacks.shared.atomic import written

PREFIX = "attribution."
"""The beginning of the names of the tensors with attributions."""

COLUMNS = {
    "sample_id": torch.int64,
    "target": torch.int64,
    "prediction": torch.int64,
    "score": torch.float32,
    "non_finite": torch.int64,
    "checksum": torch.int64,
}
"""The columns of a shard, with one value for each sample, and their types."""

ADVICE = (
    "Run the prediction again, which sets it aside and explains its samples again, or delete it."
)
"""What to do about a damaged shard."""


def write_shard(
    folder: Path,
    attributions: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
    manifest: str,
) -> Path:
    """Writes a shard under a unique name, atomically.

    Args:
        folder: The folder, which is created if it doesn't exist.
        attributions: The attributions by input, ``(samples, ...)``.
        columns: ``sample_id``, ``target``, ``prediction`` and ``score``, each ``(samples,)``.
        manifest: The checksum of the folder's manifest.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The first sample's id is for readers; the rest makes the name unique among processes and runs.
    path = folder / f"{int(columns['sample_id'][0]):09d}-{uuid4().hex[:12]}.safetensors"
    maps = {PREFIX + name: values.cpu().contiguous() for name, values in attributions.items()}
    all_columns = {
        **columns,
        "non_finite": _non_finite(maps, columns["score"]),
        "checksum": torch.tensor(_checksums(maps, len(columns["sample_id"]))),
    }
    said = {name: all_columns[name].cpu().to(dtype) for name, dtype in COLUMNS.items()}
    metadata = {
        "format": "pt",
        "manifest": manifest,
        "columns": str(_checksum_of_columns(said)),
    }
    with written(path) as unfinished:
        required("safetensors.torch").save_file({**said, **maps}, unfinished, metadata=metadata)
    return path


def read_columns(path: Path, manifest: str) -> dict[str, Tensor]:
    """Reads the columns of a shard without its attributions.

    Args:
        path: The shard.
        manifest: The checksum of the folder's manifest.

    Returns:
        For each of `COLUMNS` ``(samples,)``.

    Raises:
        DamagedDataError: If the file is damaged, or belongs to another folder.
    """
    with _opened(path) as shard:
        metadata = shard.metadata() or {}
        columns = {name: shard.get_tensor(name) for name in COLUMNS}
    if str(_checksum_of_columns(columns)) != metadata.get("columns"):
        raise DamagedDataError(f"{path} is damaged (its columns have changed).")
    if metadata.get("manifest") != manifest:
        raise DamagedDataError(
            f"{path} belongs to other explanations than those of the manifest.json."
        )
    return columns


def read_attributions(path: Path, row: int, checksum: int) -> dict[str, Tensor]:
    """Reads only the attributions of one sample from a shard.

    Args:
        path: The shard.
        row: The sample's place in it.
        checksum: The checksum of these attributions according to the index.

    Returns:
        The attribution by input, without a dimension for samples.

    Raises:
        DamagedDataError: If the attributions have changed.
    """
    with _opened(path, ADVICE) as shard:
        # Cloned, since a slice may be a view of the file, which then must not change.
        maps = {
            name: shard.get_slice(name)[row : row + 1].clone()
            for name in sorted(shard.keys())
            if name.startswith(PREFIX)
        }
    if [*_checksums(maps, 1)] != [checksum]:
        raise DamagedDataError(f"{path} is damaged (its row {row} has changed). {ADVICE}")
    return {name.removeprefix(PREFIX): values[0] for name, values in maps.items()}


def check_shard(path: Path, manifest: str) -> dict[str, Tensor]:
    """Reads a whole shard, and compares it with its checksums.

    Args:
        path: The shard.
        manifest: The checksum of the folder's manifest.

    Returns:
        For each of `COLUMNS` ``(samples,)``.

    Raises:
        DamagedDataError: If the file is damaged, or belongs to another folder.
    """
    columns = read_columns(path, manifest)
    with _opened(path) as shard:
        maps = {
            name: shard.get_tensor(name) for name in sorted(shard.keys()) if name.startswith(PREFIX)
        }
        found = _checksums(maps, len(columns["sample_id"]))
    if found != columns["checksum"].tolist():
        raise DamagedDataError(f"{path} is damaged (its attributions have changed).")
    return columns


@contextmanager
def _opened(path: Path, advice: str = "") -> Iterator[Any]:
    safetensors = required("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as shard:
            yield shard
    except FileNotFoundError as error:
        raise DamagedDataError(
            f"{path} is missing. Run the prediction again, which explains its samples again."
        ) from error
    except (safetensors.SafetensorError, ValueError, IndexError, KeyError, TypeError) as error:
        raise DamagedDataError(f"{path} is damaged ({error}). {advice}".rstrip()) from error


def _checksums(maps: Mapping[str, Tensor], count: int) -> list[int]:
    if any(len(values) != count for values in maps.values()):
        return []
    return [
        checksum_of(part for name in sorted(maps) for part in (name, maps[name][row]))
        for row in range(count)
    ]


def _checksum_of_columns(columns: Mapping[str, Tensor]) -> int:
    return checksum_of(part for name in COLUMNS for part in (name, columns[name]))


def _non_finite(maps: Mapping[str, Tensor], score: Tensor) -> Tensor:
    counts = (~torch.isfinite(score.cpu())).long()
    for values in maps.values():
        counts = counts + (~torch.isfinite(values)).flatten(1).sum(1)
    return counts
