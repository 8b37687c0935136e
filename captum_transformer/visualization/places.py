"""Where in a picture each value comes from that a processor has made of it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Grey: TypeAlias = npt.NDArray[np.float64]
"""From black (0) to white (1), in a shape that a picture's can be broadcast from."""

Process: TypeAlias = Callable[[list[Any]], Tensor]
"""What makes a model's input of a list of pictures (as PIL images)."""


class Places(NamedTuple):
    """The place of each value of a model's input in the pictures that it was made of.

    Attributes:
        picture: which of the pictures, from 0; -1 for padding, which comes from none.
        x: how far from the left edge, from 0 to 1.
        y: how far from the upper edge.
    """

    picture: Tensor
    x: Tensor
    y: Tensor

    def resolution(self, number: int) -> tuple[int, int]:
        """How many rows and columns of a picture the input tells apart, at most 255 of each."""
        inside = self.picture == number
        return _count(self.y[inside]), _count(self.x[inside])

    def maps(self, relevance: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Adds up relevance by the places that it belongs to.

        Parts of a picture that the model sees several times, as in crops beside the whole, have
        the sum of what all of them have; those that were cut away have none. Relevance of padding
        is left out.

        Args:
            relevance: of the input, ``(..., *shape)``.
            sizes: height and width of each map, up to its `resolution`.

        Returns:
            A map ``(..., height, width)`` for each picture.
        """
        values = self.picture.dim()
        flat = relevance.flatten(relevance.dim() - values)
        lead = flat.shape[:-1]
        found = []
        for number, (height, width) in enumerate(sizes):
            inside = (self.picture == number).flatten()
            row = (self.y.flatten()[inside] * height).long().clamp(0, height - 1)
            column = (self.x.flatten()[inside] * width).long().clamp(0, width - 1)
            out = flat.new_zeros(*lead, height * width)
            cells = (row * width + column).to(flat.device)
            summed = out.index_add(-1, cells, flat[..., inside])
            found.append(summed.reshape(*lead, height, width))
        return found


def places_of(process: Process, pictures: Sequence[Any]) -> Places:
    r"""Finds out where a processor puts which part of some pictures.

    However a processor crops, scales, tiles, cuts into patches and pads: it is asked. It gets
    pictures of the same sizes that are black, white, or grey by the column, by the row and by the
    number of the picture. A value that is :math:`v` for one of them, and :math:`b` and :math:`w`
    for the black and the white one, is from :math:`(v - b) / (w - b)` of the way, since processors
    interpolate between pixels and shift and scale what they find. A value that is the same for
    black and for white comes from no picture.

    Args:
        process: makes the model's input of a list of PIL images, the same of the same pictures.
        pictures: the PIL images.

    Returns:
        The place of each value, in tensors of the input's shape.

    Raises:
        ValueError: if there is no picture, or the input's shape depends on what they show.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from torchvision.transforms.functional import to_tensor
        >>> def process(pictures):  # the left half of each
        ...     halves = [picture.crop((0, 0, 4, 4)) for picture in pictures]
        ...     return torch.stack([to_tensor(half) for half in halves])
        >>> places = places_of(process, [Image.new("RGB", (8, 4))])
        >>> [of_picture] = places.maps(torch.ones(1, 3, 4, 4), [(1, 4)])
        >>> of_picture
        tensor([[24., 24.,  0.,  0.]])
    """
    if not pictures:
        raise ValueError("There is no picture to find places in.")
    sizes = [picture.size for picture in pictures]

    def made_of(greys: Iterable[Grey]) -> Tensor:
        drawn = list(map(_picture, greys, sizes))
        return process(drawn).detach().double()

    black = made_of(np.zeros(1) for _ in sizes)
    white = made_of(np.ones(1) for _ in sizes)
    across = made_of(_middles(width) for width, _ in sizes)
    down = made_of(_middles(height)[:, None] for _, height in sizes)
    number = made_of(_middles(len(sizes))[:, None])
    shapes = {tuple(made.shape) for made in (black, white, across, down, number)}
    if len(shapes) > 1:
        raise ValueError(
            f"The processor makes inputs of different shapes, {sorted(shapes)}, of pictures of the "
            "same sizes, so what the pictures show decides which part of them goes where."
        )
    span = white - black
    seen = span != 0
    x, y, which = (
        torch.where(seen, (made - black) / torch.where(seen, span, 1.0), 0.0).clamp(0, 1)
        for made in (across, down, number)
    )
    picture = (which * len(sizes)).long().clamp(max=len(sizes) - 1).masked_fill(~seen, -1)
    return Places(picture, x, y)


def _count(places: Tensor) -> int:
    """How many places that lie as far apart as these fit into a picture."""
    gaps = torch.unique(places).diff()
    # Values between the same two pixels are rounded differently where channels have other ranges.
    gaps = gaps[gaps > 0.5 / 255]
    return 1 if not len(gaps) else min(255, max(1, round(1 / float(gaps.median()))))


def _middles(count: int) -> Grey:
    return (np.arange(count) + 0.5) / count


def _picture(grey: Grey, size: tuple[int, int]) -> Any:
    from PIL import Image

    width, height = size
    pixels = np.broadcast_to((grey * 255).round().astype(np.uint8), (height, width))
    return Image.fromarray(np.repeat(pixels[..., None], 3, axis=2))
