"""An image and its heatmap side by side, with a caption."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.canvas import BLACK, GREY, Canvas, Image, fit
from captum_transformer.visualization.maps import MapOptions, ScaledMap, scaled_map
from captum_transformer.visualization.overlay import Picture, blend, to_display

MARGIN = 10
"""Pixels around and between the parts of a picture."""

CAPTION_LINE = 19
"""Pixels from one line of a caption to the next."""

_TICKS = 66
_BAR = 10
SCALE_WIDTH = _BAR + _TICKS
"""Pixels that a colour bar takes with its numbers."""


def panel(
    image: Picture,
    attribution: Tensor,
    caption: str = "",
    *,
    height: int = 256,
    **options: Unpack[MapOptions],
) -> Image:
    r"""Draws an image, its overlay and the overlay's colour scale side by side under a caption.

    Args:
        image: A tensor, an array or an image of PIL, in any range; see `to_display`.
        attribution: ``(C, H, W)`` or ``(H, W)``, see `overlay`.
        caption: One or several lines. The first is dark, those below are grey; what is too long for
            the picture ends in an ellipsis, so that its size depends only on the number of lines.
        height: The height in pixels that the image is shown with.
        **options: What of the attribution is shown, see `MapOptions`.

    Returns:
        A uint8 array ``(height, width, 3)``, ready for ``add_image(..., dataformats="HWC")``.

    Raises:
        ValueError: If a shape doesn't fit, an option has no meaning or a value is not finite.

    Example:
        >>> import torch
        >>> image, attribution = torch.rand(3, 32, 32), torch.randn(3, 32, 32)
        >>> panel(image, attribution, "label: zebra\nzebra, p = 0.87").shape
        (314, 618, 3)
    """
    if height < 1:
        raise ValueError(f"height must be a positive number of pixels, got {height}.")
    pixels = to_display(image)
    scaled = scaled_map(attribution, pixels.shape[:2], **options)
    left, right = fit_height(pixels, height), fit_height(blend(pixels, scaled), height)
    width = left.shape[1]
    lines = caption.splitlines()
    top = MARGIN + len(lines) * CAPTION_LINE
    bar = 3 * MARGIN + 2 * width
    canvas = Canvas(bar + SCALE_WIDTH, top + height + MARGIN)
    write_caption(canvas, lines)
    canvas.paste(left, MARGIN, top)
    canvas.paste(right, 2 * MARGIN + width, top)
    color_bar(canvas, scaled, bar, top, height)
    return canvas.image()


def write_caption(canvas: Canvas, lines: Sequence[str]) -> None:
    """Writes a caption to the top of a canvas; what is too long ends in an ellipsis.

    Args:
        canvas: Where to write.
        lines: The caption's lines.
    """
    width = canvas.width - 2 * MARGIN
    for number, line in enumerate(lines):
        size, color = (11, BLACK) if number == 0 else (10, GREY)
        baseline = 22 + number * CAPTION_LINE
        canvas.text(MARGIN, baseline, fit(line, width, size), size=size, color=color)


def format_value(value: float, digits: int = 2) -> str:
    """Writes a value of a colour scale; with two digits, in at most seven characters.

    Args:
        value: Any finite number.
        digits: How many significant digits it is rounded to.

    Returns:
        The digits, with a true minus sign.

    Example:
        >>> format_value(0.01234), format_value(-12000.0)
        ('0.012', '−1.2e+04')
    """
    # Adding zero turns a negative zero into a positive one.
    return f"{value + 0.0:.{digits}g}".replace("-", "−")


def color_bar(canvas: Canvas, scaled: ScaledMap, x: int, y: int, height: int) -> None:
    """Draws the colour scale of a heatmap, with the attributions at its ends.

    Args:
        canvas: Where to draw.
        scaled: The map that the scale belongs to.
        x: The left end.
        y: The upper end.
        height: The length of the bar; that of a map of zeros is a plain grey.
    """
    top, bottom = float(scaled.scale > 0), -float(scaled.scale > 0 and scaled.signed)
    values = torch.linspace(top, bottom, height)[:, None].expand(-1, _BAR)
    # Over the grey of an image of one colour, so that the bar looks as the heatmap does.
    grey = np.full((height, _BAR, 3), 128, np.uint8)
    canvas.paste(blend(grey, ScaledMap(values, scaled.scale, scaled.signed)), x, y)
    ticks = {top: scaled.scale, 0.0: 0.0, bottom: bottom * scaled.scale}
    for position, value in ticks.items():
        share = (top - position) / (top - bottom) if top > bottom else 1.0
        baseline = y + 10 + share * (height - 10)
        canvas.text(x + _BAR + 5, baseline, format_value(value), size=8.5, color=GREY)


def fit_height(image: Image, height: int) -> Image:
    """Resizes a picture; pixels that grow stay sharp squares.

    Args:
        image: A uint8 array ``(H, W, 3)``.
        height: The height to have; the width follows.

    Returns:
        A uint8 array ``(height, width, 3)``.
    """
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    if height >= image.shape[0]:
        out = F.interpolate(pixels, (height, width), mode="nearest-exact")
    else:
        out = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    resized: Image = out[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return resized
