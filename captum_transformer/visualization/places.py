"""Finds the place in a picture that each value of a processor's output comes from."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Grey: TypeAlias = npt.NDArray[np.float64]
"""Values from black (0) to white (1), in a shape that broadcasts to a picture's."""

Process: TypeAlias = Callable[[list[Any]], Tensor]
"""Converts a list of pictures (PIL images) to a model's input."""

_MOST = 100  # pictures whose numbers can be distinguished as greys
_STEP = 0.5 / 255
# The tolerance for two ramps, each drawn and perhaps interpolated in whole steps of grey; beyond
# the edges of a picture, there are no values to interpolate with.
_ROUNDING = 8 / 255


class Places(NamedTuple):
    """The place of each value of a model's input in the original pictures.

    Attributes:
        picture: the index of the picture, from 0; -1 for padding.
        x: the distance from the left edge, from 0 to 1.
        y: the distance from the upper edge, from 0 to 1.
    """

    picture: Tensor
    x: Tensor
    y: Tensor

    def resolution(self, number: int) -> tuple[int, int]:
        """Returns how many rows and columns of a picture the input resolves, at most 255 each."""
        inside = self.picture == number
        return _count(self.y[inside]), _count(self.x[inside])

    def maps(self, relevance: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Sums relevance by its place in the pictures.

        Parts of a picture that the model sees several times, as with crops in addition to the whole
        picture, have the sum of all of them; parts that were cropped away have zero. Relevance of
        padding is left out.

        Args:
            relevance: the relevance of the input, ``(..., *shape)``.
            sizes: the height and width of each map, up to its `resolution`.

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
    r"""Determines where each value of a processor's output comes from in a picture.

    This works for any way to crop, scale, tile, cut into patches and pad: the processor gets
    pictures of the same sizes that are black, white, or grey by the column, by the row and by the
    number of the picture. A value that is :math:`v` for one of them, and :math:`b` and :math:`w`
    for the black and the white one, is from :math:`(v - b) / (w - b)` of the way, since processors
    interpolate between pixels and shift and scale what they find. A value that is the same for
    black and white is padding. A processor that does anything else, such as cropping at random or
    by content, or scaling by a picture's own range, is detected: a reversed ramp must give the
    rest of the range, the pictures themselves must give the same result twice, and values that
    come from no picture must be those of a black one.

    Args:
        process: a deterministic function from a list of PIL images to the model's input.
        pictures: the PIL images.

    Returns:
        The place of each value, in tensors of the input's shape.

    Raises:
        ValueError: if there is no picture, there are more than 100, or the processor does not treat
            all pictures of a size alike.

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
    if not 1 <= len(pictures) <= _MOST:
        raise ValueError(
            f"Places are found in 1 to {_MOST} pictures at a time, got {len(pictures)}."
        )
    sizes = [picture.size for picture in pictures]

    def made_of(greys: Iterable[Grey]) -> Tensor:
        drawn = list(map(_picture, greys, sizes))
        for grey, picture in zip(drawn, pictures, strict=True):
            grey.info = dict(picture.info)  # such as how a camera was held
        return _on_host(process(drawn))

    ramps: list[list[Grey]] = [
        [_middles(width) for width, _ in sizes],
        [_middles(height)[:, None] for _, height in sizes],
        list(_middles(len(sizes))[:, None]),
    ]
    black, white = made_of(np.zeros(1) for _ in sizes), made_of(np.ones(1) for _ in sizes)
    along = [made_of(ramp) for ramp in ramps]
    against = [made_of(1 - grey for grey in ramp) for ramp in ramps]
    shown = [_on_host(process(list(pictures))) for _ in range(2)]
    # A tenth of the way up: a nonlinear scale, such as one with a limit, changes this most.
    dark = made_of(np.full(1, 0.1) for _ in sizes)
    made = [black, white, dark, *along, *against, *shown]
    if len({each.shape for each in made}) > 1 or not _places_decide(
        black, white, dark, list(zip(along, against, strict=True)), shown
    ):
        raise ValueError(
            "It is unknown from which places in the picture the processor's values come. This "
            "requires that the places depend on the picture's size only, and that all values are "
            "scaled and shifted in the same way: the processor may crop at random or depending on "
            "the content, or normalise by the picture's own range."
        )
    span = white - black
    seen = span != 0
    x, y, which = (
        torch.where(seen, (made - black) / torch.where(seen, span, 1.0), 0.0).clamp(0, 1)
        for made in along
    )
    picture = (which * len(sizes)).long().clamp(max=len(sizes) - 1).masked_fill(~seen, -1)
    return Places(picture, x, y)


def _on_host(values: Tensor) -> Tensor:
    """Returns a processor's output where the pictures are: some devices have no float64."""
    return values.detach().cpu().double()


def _places_decide(
    black: Tensor,
    white: Tensor,
    dark: Tensor,
    ramps: Sequence[tuple[Tensor, Tensor]],
    shown: Sequence[Tensor],
) -> bool:
    """Returns whether each value is only that of its place in a picture, shifted and scaled."""
    span = white - black
    rounding = _ROUNDING * span.abs()
    scaled = (dark - black - 0.1 * span).abs() <= rounding
    turned = [(one + other - black - white).abs() <= rounding for one, other in ramps]
    padding = span == 0
    same = torch.equal(shown[0], shown[1]) and torch.equal(shown[0][padding], black[padding])
    return same and all(bool(each.all()) for each in (scaled, *turned))


def _count(places: Tensor) -> int:
    """Returns how many places with the distance of these fit into a picture, at most 255."""
    there = torch.unique(places)
    # Smaller distances are rounding errors, as of channels with other ranges, or finer than greys.
    if not len(there) or there[-1] - there[0] < _STEP:
        return 1
    gaps = there.diff()
    gaps = gaps[gaps > _STEP]
    return 255 if not len(gaps) else min(255, round(1 / float(max(gaps.median(), gaps.mean()))))


def _middles(count: int) -> Grey:
    return (np.arange(count) + 0.5) / count


def _picture(grey: Grey, size: tuple[int, int]) -> Any:
    from PIL import Image

    width, height = size
    pixels = np.broadcast_to((grey * 255).round().astype(np.uint8), (height, width))
    return Image.fromarray(np.repeat(pixels[..., None], 3, axis=2))
