"""The tokens of a text as coloured boxes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from captum_transformer.visualization.canvas import (
    BLACK,
    GREY,
    WHITE,
    Canvas,
    Color,
    Image,
    fit,
    text_width,
)
from captum_transformer.visualization.colors import ink_on, paper_colors
from captum_transformer.visualization.maps import ScaledMap, Sign
from captum_transformer.visualization.panel import (
    CAPTION_LINE,
    MARGIN,
    format_value,
    write_caption,
    write_note,
)
from captum_transformer.visualization.token_scale import OffScale, ScaledTokens, scale_tokens

_SIZE = 11.0
_PADDING = 5
_GAP = 3
_BOX = 24
_ROW = 30
_LEGEND = 26


def token_strip(
    tokens: Sequence[str],
    attribution: Tensor | Mapping[str, Tensor],
    caption: str = "",
    *,
    width: int = 640,
    sign: Sign = "auto",
    scale: float | None = None,
    off_scale: OffScale = None,
    font_scale: float = 1.0,
    note: str = "",
    unit: str = "",
) -> Image:
    """Draws the tokens of a text as boxes whose colour is their attribution.

    White is zero, red supports the class, blue is evidence against it; the legend at the bottom
    names the attribution of the strongest colour. Lines wrap at the picture's width. The font is
    Matplotlib's
    ``rcParams["font.family"]``; add one there for scripts that its default lacks.

    Args:
        tokens: The N tokens as strings, or its words, see `merge_words`.
        attribution: One value per token, ``(N,)``, or ``(N, D)`` for the values of an embedding,
            which are summed. Several of them by title, such as those of several steps, are drawn
            below each other with one scale.
        caption: One or several lines, see `panel`.
        width: The picture's width in pixels.
        sign: Which part of the attribution is shown, see `scale_map`.
        scale: The attribution with the strongest colour; None: each text has its own.
        off_scale: For each token, whether it is left out when the scale is found: special tokens,
            or the first of a decoder, which may hold nearly all relevance. These are framed, not
            filled, and show their value if it is beyond the scale.
        font_scale: How large letters and boxes are; 2 for pictures that are shown at half their
            size.
        note: A line below the legend, such as a description of the scale.
        unit: The unit after the numbers of the legend.

    Returns:
        A uint8 array ``(height, width, 3)``.

    Raises:
        ValueError: If the tokens and the attribution don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> token_strip(["a", "fine", "film"], torch.tensor([0.1, 0.9, 0.2])).shape
        (72, 640, 3)
    """
    if width < 100:
        raise ValueError(f"width must be at least 100 pixels, got {width}.")
    maps = {"": attribution} if isinstance(attribution, Tensor) else dict(attribution)

    def scaled_by(sign: Sign, scale: float | None) -> list[ScaledTokens]:
        return [
            scale_tokens(tokens, values, off_scale=off_scale, sign=sign, scale=scale)
            for values in maps.values()
        ]

    found = scaled_by(sign, scale)
    if len(maps) > 1:
        if sign == "auto" and any(each.scaled.signed for each in found):
            sign = "signed"
        common = max(each.scaled.scale for each in found)
        found = scaled_by(sign, scale or common or None)
    room = width - 2 * MARGIN
    strips = [
        TokenBoxes.laid_out(
            each,
            room,
            font_scale,
            unit=unit,
            ends=("", "") if sign == "absolute" else ("against", "for"),
            legend=each is found[-1],
        )
        for each in found
    ]
    lines = caption.splitlines()
    line = round(CAPTION_LINE * font_scale)
    above = line if any(maps) else 0
    top = round(MARGIN * font_scale) + len(lines) * line
    height = top + sum(above + strip.height for strip in strips)
    canvas = Canvas(width, height + MARGIN - 4 + (line if note else 0))
    write_caption(canvas, lines, font_scale)
    for title, strip in zip(maps, strips, strict=True):
        size = 10 * font_scale
        canvas.text(MARGIN, top + 0.7 * line, fit(title, room, size), size=size)
        strip.draw(canvas, MARGIN, top + above)
        top += above + strip.height
    if note:
        write_note(canvas, note, height, font_scale)
    return canvas.image()


class TokenBoxes(NamedTuple):
    """Boxes with tokens, wrapped to a width, above a legend.

    Attributes:
        texts: The text of each box.
        widths: The width of each box.
        places: The x and the row of each box.
        scaled: The value of each box.
        off_scale: Which boxes are framed.
        legend: For each entry of the legend its text, its colour (None for a frame) and its place.
        font_scale: The size of letters and boxes.
        height: The height of all rows and the legend.
    """

    texts: list[str]
    widths: list[int]
    places: list[tuple[int, int]]
    scaled: ScaledMap
    off_scale: list[bool]
    legend: list[tuple[str, Color | None, tuple[int, int]]]
    font_scale: float
    height: int

    @classmethod
    def laid_out(
        cls,
        tokens: ScaledTokens,
        width: int,
        font_scale: float = 1.0,
        *,
        unit: str = "",
        ends: tuple[str, str] = ("against", "for"),
        legend: bool = True,
    ) -> "TokenBoxes":
        """Finds the place of each token; one that is wider than a line ends in an ellipsis."""
        padding, size = round(_PADDING * font_scale), _SIZE * font_scale
        texts = [fit(label, width - 2 * padding, size) for label in tokens.labels]
        widths = [round(text_width(text, size)) + 2 * padding for text in texts]
        places, rows = _wrap(widths, width, _GAP)
        entries = _entries(tokens.scaled, unit, ends) if legend else []
        if legend and any(tokens.off_scale):
            entries.append(("not on the scale", None))
        lengths = [
            round(19 * font_scale + text_width(text, 8.5 * font_scale)) for text, _ in entries
        ]
        spots, lines = _wrap(lengths, width, round(14 * font_scale))
        height = round(rows * _ROW * font_scale + legend * lines * _LEGEND * font_scale)
        said = [(*entry, spot) for entry, spot in zip(entries, spots, strict=True)]
        return cls(texts, widths, places, tokens.scaled, tokens.off_scale, said, font_scale, height)

    def draw(self, canvas: Canvas, left: int, top: int) -> None:
        """Draws the boxes and their legend with the top left corner at (left, top)."""
        zoom = self.font_scale
        height = round(_BOX * zoom)
        backgrounds = paper_colors(self.scaled.values.cpu().numpy())
        for text, width, (x, row), background, off_scale in zip(
            self.texts, self.widths, self.places, backgrounds, self.off_scale, strict=True
        ):
            y = top + round(row * _ROW * zoom)
            if off_scale:
                _frame(canvas, left + x, y, width, height, background.tolist())
            else:
                canvas.box(left + x, y, width, height, background.tolist())
            ink = BLACK if off_scale else ink_on(background)
            size = _SIZE * zoom
            canvas.text(left + x + _PADDING * zoom, y + 17 * zoom, text, size=size, color=ink)
        rows = 1 + max(row for _, row in self.places)
        for text, color, (x, row) in self.legend:
            y = top + round((rows * _ROW + row * _LEGEND + 8) * zoom)
            if color is None:
                _frame(canvas, left + x, y, round(14 * zoom), round(12 * zoom), GREY)
            else:
                canvas.box(left + x, y, round(14 * zoom), round(12 * zoom), color)
            canvas.text(left + x + 19 * zoom, y + 10 * zoom, text, size=8.5 * zoom, color=GREY)


def _wrap(widths: Sequence[int], room: int, gap: int) -> tuple[list[tuple[int, int]], int]:
    """Returns the x and the row of each box, and the number of rows."""
    places, x, row = [], 0, 0
    for width in widths:
        if x and x + width > room:
            x, row = 0, row + 1
        places.append((x, row))
        x += width + gap
    return places, row + 1


def _frame(canvas: Canvas, x: int, y: int, width: int, height: int, color: Color) -> None:
    canvas.box(x, y, width, height, GREY)
    canvas.box(x + 1, y + 1, width - 2, height - 2, WHITE)
    canvas.box(x + 2, y + height - 5, width - 4, 3, color)


def _entries(scaled: ScaledMap, unit: str, ends: tuple[str, str]) -> list[tuple[str, Color | None]]:
    """Returns the legend's texts and colours for zero and the ends of the scale."""
    places = [0.0] if not scaled.scale else [-1.0, 0.0, 1.0] if scaled.signed else [0.0, 1.0]
    colors = paper_colors(np.array(places, np.float32)).tolist()
    meaning = {-1.0: f"{unit} {ends[0]}", 0.0: "", 1.0: f"{unit} {ends[1]}"}
    return [
        (f"{format_value(place * scaled.scale)}{meaning[place]}".rstrip(), color)
        for place, color in zip(places, colors, strict=True)
    ]
