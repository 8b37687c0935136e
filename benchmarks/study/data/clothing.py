"""Clothing Co-Parsing: street photographs with a label for each pixel."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.study.data.archive import lines, opened, stacked

NAME = "ccp_160"
HELD_OUT = 4  # every fourth photograph
# The 59 labels are many for five hundred photographs: what looks alike is one class.
CLASSES: dict[str, list[str]] = {
    "hair": ["hair"],
    "skin": ["skin"],
    "footwear": "shoes boots heels sandals pumps flats loafers sneakers clogs wedges".split(),
    "bag": ["bag", "purse"],
    "trousers": ["pants", "jeans", "leggings"],
    "dress": ["dress"],
    "skirt": ["skirt"],
    "coat": ["coat", "jacket", "blazer", "cape"],
    "top": "shirt blouse t-shirt sweater sweatshirt top jumper hoodie".split(),
}
OTHER, PADDING = 254, 255


class Photographs(NamedTuple):
    """Photographs and which class each pixel shows.

    Attributes:
        images: ``(samples, 3, height, width)``, bytes.
        maps: ``(samples, height, width)``, a class's number, `OTHER` or `PADDING`.
    """

    images: Tensor
    maps: Tensor


def read(data: Path, split: str) -> Photographs:
    """Reads the split ``"train"`` or ``"val"``."""
    folder = opened(data, NAME)
    names = sorted(path.name.removesuffix(".jpg") for path in (folder / "images").iterdir())
    chosen = [n for i, n in enumerate(names) if (i % HELD_OUT == 0) == (split == "val")]
    images = stacked([folder / "images" / f"{name}.jpg" for name in chosen])
    labelled = stacked([folder / "masks" / f"{name}.png" for name in chosen], "labels")

    classes = torch.full((256,), OTHER, dtype=torch.uint8)
    classes[PADDING] = PADDING
    for line in lines(folder / "labels.txt"):
        number, label = line.split("\t")
        for index, members in enumerate(CLASSES.values()):
            if label in members:
                classes[int(number)] = index
    return Photographs(images, classes[labelled.long()])


def masks(maps: Tensor) -> Tensor:
    """Which pixels show each class: ``(samples, classes, height, width)``."""
    return maps[:, None] == torch.arange(len(CLASSES), device=maps.device)[:, None, None]
