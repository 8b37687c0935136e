"""MNIST digits, four different ones to a mosaic."""

from pathlib import Path

import numpy as np
import torch

from tutorials.quickstart import Mosaics

NAME = "mnist.npz"


def read(data: Path, split: str, count: int, seed: int) -> Mosaics:
    """Puts together about ``count`` mosaics of digits of the split ``"train"`` or ``"test"``."""
    path = data / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: pass --data the folder that holds it.")
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays[f"x_{split}"]).float() / 255
        digits = torch.from_numpy(arrays[f"y_{split}"]).long()
    return Mosaics.draw(images, digits, count, seed)
