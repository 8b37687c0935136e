"""Tiny-ImageNet, ten classes of small objects, with a box around each."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.study.data.archive import opened, stacked, table

NAME = "tinyimagenet10_boxes"


class Objects(NamedTuple):
    """Pictures of one object each.

    Attributes:
        images: ``(samples, 3, height, width)``, bytes.
        labels: ``(samples,)``.
        boxes: ``(samples, 4)``, the first column and row of the object, and the last ones.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


def read(data: Path, split: str) -> Objects:
    """Reads the split ``"train"`` or ``"val"``."""
    folder = opened(data, NAME)
    rows = [row for row in table(folder / "labels.csv") if row["split"] == split]
    return Objects(
        stacked([folder / split / row["file"] for row in rows]),
        torch.tensor([int(row["label"]) for row in rows]),
        torch.tensor([[int(row[side]) for side in ("x0", "y0", "x1", "y1")] for row in rows]),
    )
