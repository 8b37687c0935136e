"""An image and its heatmap side by side, with a caption."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.canvas import BLACK, GREY, Canvas, Image, fit
from captum_transformer.visualization.maps import MapOptions, ScaledMap, common_scale, scaled_map
from captum_transformer.visualization.overlay import Picture, blend, to_display
from captum_transformer.visualization.patches import BY_PATCH

MARGIN = 10
"""Pixels around and between the parts of a picture."""

CAPTION_LINE = 19
"""Pixels from one line of a caption to the next, with letters of the usual size."""

_TICKS = 66
_BAR = 10
SCALE_WIDTH = _BAR + _TICKS
"""Pixels that a colour bar takes with its numbers, with letters of the usual size."""


def panel(
    image: Picture,
    attribution: Tensor | Mapping[str, Tensor | None],
    caption: str = "",
    *,
    height: int = 256,
    font_scale: float = 1.0,
    note: str = "",
    unit: str = "",
    **options: Unpack[MapOptions],
) -> Image:
    r"""Draws an image, its overlay and the overlay's colour scale side by side under a caption.

    Args:
        image: A tensor, an array or an image of PIL, in any range; see `to_display`.
        attribution: ``(C, H, W)`` or ``(H, W)``, see `overlay`. Several of them by title, such as
            those of several steps, are drawn side by side with one scale; None leaves a place
            empty.
        caption: One or several lines. The first is dark, those below are grey; lines that are too
            long for the picture end in an ellipsis, so that its size depends only on the number of
            lines.
        height: The height of the drawn image, in pixels.
        font_scale: The size of letters; 2 for pictures that are shown at half their size.
        note: A line below the picture, such as a description of the scale. With a ``grid`` it also
            says that the values are summed by patch.
        unit: The unit, written after the numbers of the scale.
        **options: How the attribution is drawn, see `MapOptions`.

    Returns:
        A uint8 array ``(height, width, 3)``, ready for ``add_image(..., dataformats="HWC")``.

    Raises:
        ValueError: If a shape doesn't fit, an option is invalid or a value is not finite.

    Example:
        >>> import torch
        >>> image, attribution = torch.rand(3, 32, 32), torch.randn(3, 32, 32)
        >>> panel(image, attribution, "label: zebra\nzebra, p = 0.87").shape
        (314, 618, 3)
    """
    if height < 1:
        raise ValueError(f"height must be a positive number of pixels, got {height}.")
    if options.get("grid") is not None:
        note = "; ".join(filter(None, (note, BY_PATCH)))
    pixels = to_display(image)
    maps = {"": attribution} if isinstance(attribution, Tensor) else dict(attribution)
    there = {title: values for title, values in maps.items() if values is not None}
    if len(maps) > 1:
        options = common_scale(there.values(), **options)
    scaled = {
        title: scaled_map(values, pixels.shape[:2], **options) for title, values in there.items()
    }
    left = fit_height(pixels, height)
    width = left.shape[1]
    line = round(CAPTION_LINE * font_scale)
    lines = caption.splitlines()
    top = round(MARGIN * font_scale) + (len(lines) + any(maps)) * line
    bar = MARGIN + (1 + len(maps)) * (width + MARGIN)
    bottom = top + height + MARGIN
    canvas = Canvas(bar + _BAR + round(_TICKS * font_scale), bottom + (line if note else 0))
    write_caption(canvas, lines, font_scale)
    canvas.paste(left, MARGIN, top)
    for number, title in enumerate(maps, start=1):
        x = MARGIN + number * (width + MARGIN)
        canvas.text(
            x, top - 5 * font_scale, fit(title, width, 10 * font_scale), size=10 * font_scale
        )
        if title in scaled:
            canvas.paste(fit_height(blend(pixels, scaled[title]), height), x, top)
    ends = ("", "") if options.get("sign") == "absolute" else ("for", "against")
    color_bar(
        canvas, next(iter(scaled.values())), bar, top, height, font_scale, unit=unit, ends=ends
    )
    if note:
        write_note(canvas, note, bottom, font_scale)
    return canvas.image()


def write_caption(canvas: Canvas, lines: Sequence[str], font_scale: float = 1.0) -> None:
    """Writes a caption to the top of a canvas; lines that are too long end in an ellipsis.

    Args:
        canvas: The canvas to write on.
        lines: The caption's lines.
        font_scale: The size of letters.
    """
    width = canvas.width - 2 * MARGIN
    for number, line in enumerate(lines):
        size, color = (11 * font_scale, BLACK) if number == 0 else (10 * font_scale, GREY)
        baseline = (3 + CAPTION_LINE * (number + 1)) * font_scale
        canvas.text(MARGIN, baseline, fit(line, width, size), size=size, color=color)


def write_note(canvas: Canvas, note: str, y: int, font_scale: float = 1.0) -> None:
    """Writes a small grey line; if it is too long, it ends in an ellipsis.

    Args:
        canvas: The canvas to write on.
        note: The line.
        y: Its upper end.
        font_scale: The size of letters.
    """
    size = 8.5 * font_scale
    text = fit(note, canvas.width - 2 * MARGIN, size)
    canvas.text(MARGIN, y + 10 * font_scale, text, size=size, color=GREY)


def format_value(value: float, digits: int = 2) -> str:
    """Formats a value of a colour scale; with two digits, in at most seven characters.

    Args:
        value: Any finite number.
        digits: The number of significant digits.

    Returns:
        The digits, with a true minus sign.

    Example:
        >>> format_value(0.01234), format_value(-12000.0)
        ('0.012', '−1.2e+04')
    """
    # Adding zero turns a negative zero into a positive one.
    return f"{value + 0.0:.{digits}g}".replace("-", "−")


def color_bar(
    canvas: Canvas,
    scaled: ScaledMap,
    x: int,
    y: int,
    height: int,
    font_scale: float = 1.0,
    *,
    unit: str = "",
    ends: tuple[str, str] = ("for", "against"),
) -> None:
    """Draws the colour scale of a heatmap, with the attributions at its ends.

    Args:
        canvas: The canvas to draw on.
        scaled: The map that the scale belongs to.
        x: The left end.
        y: The upper end.
        height: The length of the bar, which is plain grey for a map of zeros.
        font_scale: The size of letters.
        unit: The unit after the numbers.
        ends: The meaning of the two ends, written if there is enough space.
    """
    top, bottom = float(scaled.scale > 0), -float(scaled.scale > 0 and scaled.signed)
    values = torch.linspace(top, bottom, height)[:, None].expand(-1, _BAR)
    # Over the grey of an image of one colour, so that the bar looks like the heatmap.
    grey = np.full((height, _BAR, 3), 128, np.uint8)
    canvas.paste(blend(grey, ScaledMap(values, scaled.scale, scaled.signed)), x, y)
    line = 10 * font_scale

    def write(text: str, baseline: float) -> None:
        canvas.text(x + _BAR + 5, y + baseline, text, size=8.5 * font_scale, color=GREY)

    ticks = {top: scaled.scale, 0.0: 0.0, bottom: bottom * scaled.scale}
    for position, value in ticks.items():
        share = (top - position) / (top - bottom) if top > bottom else 1.0
        write(format_value(value) + unit * bool(value), line + share * (height - line))
    if height >= 8 * line and scaled.scale:
        write(ends[0], 2.3 * line)
        if scaled.signed:
            write(ends[1], height - 1.3 * line)


def fit_height(image: Image, height: int) -> Image:
    """Resizes a picture; enlarged pixels stay sharp squares.

    Args:
        image: A uint8 array ``(H, W, 3)``.
        height: The new height; the aspect ratio is kept.

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
