"""Shards: safetensors files that hold the explanations of some samples and all that goes with them.

A shard has one tensor per input of the model, ``attribution.<input>``, and one per `COLUMNS` entry,
all with the samples in their first dimension. Whether a sample has been explained is whether a
shard holds it; nothing else has to be kept in step with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from lightning_callbacks.data_sets.atomic import written
from lightning_callbacks.data_sets.packages import required

PREFIX = "attribution."
"""The beginning of the names of the tensors with attributions."""

COLUMNS = {
    "sample_id": torch.int64,
    "target": torch.int64,
    "prediction": torch.int64,
    "score": torch.float32,
}
"""What a shard says of each sample, and in which type."""


def write_shard(
    folder: Path, attributions: Mapping[str, Tensor], columns: Mapping[str, Tensor]
) -> Path:
    """Writes a shard under a name of its own, atomically.

    Args:
        folder: The folder; it is made if it isn't there.
        attributions: For each input ``(samples, ...)``.
        columns: For each of `COLUMNS` ``(samples,)``.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The first sample's number is for people; the rest keeps processes and runs apart.
    path = folder / f"{int(columns['sample_id'][0]):09d}-{uuid4().hex[:12]}.safetensors"
    tensors = {name: columns[name].to(dtype) for name, dtype in COLUMNS.items()}
    tensors |= {PREFIX + name: values for name, values in attributions.items()}
    tensors = {name: values.cpu().contiguous() for name, values in tensors.items()}
    with written(path) as unfinished:
        required("safetensors.torch").save_file(tensors, unfinished, metadata={"format": "pt"})
    return path


def read_columns(path: Path) -> dict[str, Tensor]:
    """Reads all of a shard but the attributions.

    Args:
        path: The shard.

    Returns:
        For each of `COLUMNS` ``(samples,)``.

    Raises:
        ValueError: If the file is damaged.
    """
    safetensors = required("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as shard:
            return {name: shard.get_tensor(name) for name in COLUMNS}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}). Delete it; its samples are explained anew when the "
            "prediction is run again."
        ) from error


def read_attributions(path: Path, row: int) -> dict[str, Tensor]:
    """Reads the attributions of one sample, and nothing else of the file.

    Args:
        path: The shard.
        row: The sample's place in it.

    Returns:
        For each input its attribution, without a dimension for samples.
    """
    with required("safetensors").safe_open(path, framework="pt") as shard:
        # Cloned, since a slice may be a window on the file, which would have to stay as it is.
        return {
            name.removeprefix(PREFIX): shard.get_slice(name)[row : row + 1][0].clone()
            for name in sorted(shard.keys())
            if name.startswith(PREFIX)
        }
