"""Random changes of training pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor


def flipped(images: Tensor) -> Tensor:
    """Each with a chance of one half mirrored."""
    chosen = (torch.rand(len(images), device=images.device) < 0.5).view(-1, 1, 1, 1)
    return torch.where(chosen, images.flip(-1), images)


def shifted(images: Tensor, by: int) -> Tensor:
    """Each moved by up to ``by`` pixels, edges repeated."""
    side = images.shape[-1]
    wide = F.pad(images, (by, by, by, by), mode="replicate")
    rows, columns = torch.randint(2 * by + 1, (2, len(images))).tolist()
    cut = [w[:, r : r + side, c : c + side] for w, r, c in zip(wide, rows, columns, strict=True)]
    return torch.stack(cut)


def cropped(
    images: Tensor, maps: Tensor, smallest: int, largest: int
) -> list[tuple[Tensor, Tensor]]:
    """A random square of each picture and of its label map."""
    side = images.shape[-1]
    squares = []
    for image, labels in zip(images, maps, strict=True):
        width = int(torch.randint(smallest, largest + 1, ()))
        row, column = torch.randint(side - width + 1, (2,)).tolist()
        inside = (..., slice(row, row + width), slice(column, column + width))
        squares.append((image[inside], labels[inside]))
    return squares
