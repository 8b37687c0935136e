"""Files of a data set, whether it was unpacked or not."""

import csv
import io
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

Folder = Path | zipfile.Path


def opened(data: Path, name: str) -> Folder:
    """The folder ``name`` in ``data``, or the inside of ``name.zip``."""
    if (data / name).is_dir():
        return data / name
    if (data / f"{name}.zip").is_file():
        return zipfile.Path(data / f"{name}.zip")
    raise FileNotFoundError(
        f"{data} has neither a folder {name!r} nor {name + '.zip'!r}: pass --data the folder that "
        "holds the data sets, or leave this task out with --only."
    )


def lines(path: Folder) -> list[str]:
    """A text file's lines."""
    return path.read_text(encoding="utf-8").splitlines()


def table(path: Folder) -> list[dict[str, str]]:
    """A file of comma-separated values with a header."""
    return list(csv.DictReader(lines(path)))


def picture(path: Folder, mode: str = "RGB") -> Tensor:
    """A picture as bytes ``(channels, height, width)``; a label map as ``(height, width)``."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        if mode == "labels":
            return pil_to_tensor(image)[0]
        return pil_to_tensor(image.convert(mode))


def stacked(paths: list[Folder], mode: str = "RGB") -> Tensor:
    """Pictures of one size."""
    return torch.stack([picture(path, mode) for path in paths])
