"""The tokens of a text as coloured boxes."""

from collections.abc import Sequence
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
from captum_transformer.visualization.panel import CAPTION_LINE, MARGIN, format_value, write_caption
from captum_transformer.visualization.token_scale import OffScale, ScaledTokens, scale_tokens

_SIZE = 11.0
_PADDING = 5
_GAP = 3
_BOX = 24
_ROW = 30
_LEGEND = 26


def token_strip(
    tokens: Sequence[str],
    attribution: Tensor,
    caption: str = "",
    *,
    width: int = 640,
    sign: Sign = "auto",
    scale: float | None = None,
    off_scale: OffScale = None,
) -> Image:
    """Draws the tokens of a text as boxes whose colour is their attribution.

    White is zero, red speaks for the class, blue against it; the legend at the bottom names the
    attribution of the strongest colour. Lines wrap at the picture's width. The font is Matplotlib's
    ``rcParams["font.family"]``; add one there for scripts that its default lacks.

    Args:
        tokens: The N tokens as strings, or its words, see `merge_words`.
        attribution: One value per token, ``(N,)``, or ``(N, D)`` for the values of an embedding,
            which are summed.
        caption: One or several lines, see `panel`.
        width: The picture's width in pixels.
        sign: Which part of the attribution is shown, see `scale_map`.
        scale: The attribution with the strongest colour; None: each text has its own.
        off_scale: For each token, whether it is left out when the scale is found: special tokens,
            or the first of a decoder, which may hold nearly all relevance. These are framed, not
            filled, and say their value where it is beyond the scale.

    Returns:
        A uint8 array ``(height, width, 3)``.

    Raises:
        ValueError: If the tokens and the attribution don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> token_strip(["a", "fine", "film"], torch.tensor([0.1, 0.9, 0.2])).shape
        (72, 640, 3)
    """
    scaled = scale_tokens(tokens, attribution, off_scale=off_scale, sign=sign, scale=scale)
    if width < 100:
        raise ValueError(f"width must be at least 100 pixels, got {width}.")
    boxes = TokenBoxes.laid_out(scaled, width - 2 * MARGIN)
    lines = caption.splitlines()
    top = MARGIN + len(lines) * CAPTION_LINE
    canvas = Canvas(width, top + boxes.height + MARGIN - 4)
    write_caption(canvas, lines)
    boxes.draw(canvas, MARGIN, top)
    return canvas.image()


class TokenBoxes(NamedTuple):
    """Boxes with tokens, wrapped to a width, above a legend.

    Attributes:
        texts: What each box says.
        widths: The width of each box.
        places: The x and the row of each box.
        scaled: The value of each box.
        off_scale: Which boxes are framed.
        height: Of all rows and the legend.
    """

    texts: list[str]
    widths: list[int]
    places: list[tuple[int, int]]
    scaled: ScaledMap
    off_scale: list[bool]
    height: int

    @classmethod
    def laid_out(cls, tokens: ScaledTokens, width: int) -> "TokenBoxes":
        """Finds each token its place; what is wider than a whole line ends in an ellipsis."""
        texts = [fit(label, width - 2 * _PADDING, _SIZE) for label in tokens.labels]
        widths = [round(text_width(text, _SIZE)) + 2 * _PADDING for text in texts]
        places, rows = _wrap(widths, width)
        height = rows * _ROW + _LEGEND
        return cls(texts, widths, places, tokens.scaled, tokens.off_scale, height)

    def draw(self, canvas: Canvas, left: int, top: int) -> None:
        """Draws the boxes and their legend with the top left corner at (left, top)."""
        backgrounds = paper_colors(self.scaled.values.cpu().numpy())
        for text, width, (x, row), background, off_scale in zip(
            self.texts, self.widths, self.places, backgrounds, self.off_scale, strict=True
        ):
            y = top + row * _ROW
            if off_scale:
                _frame(canvas, left + x, y, width, _BOX, background.tolist())
            else:
                canvas.box(left + x, y, width, _BOX, background.tolist())
            ink = BLACK if off_scale else ink_on(background)
            canvas.text(left + x + _PADDING, y + 17, text, size=_SIZE, color=ink)
        end = _legend(canvas, self.scaled, left, top + self.height - _LEGEND)
        if any(self.off_scale):
            y = top + self.height - _LEGEND
            _frame(canvas, end, y + 8, 14, 12, GREY)
            canvas.text(end + 19, y + 18, "not on the scale", size=8.5, color=GREY)


def _wrap(widths: Sequence[int], room: int) -> tuple[list[tuple[int, int]], int]:
    """Where each box goes, as its x and its row, and the number of rows."""
    places, x, row = [], 0, 0
    for width in widths:
        if x and x + width > room:
            x, row = 0, row + 1
        places.append((x, row))
        x += width + _GAP
    return places, row + 1


def _frame(canvas: Canvas, x: int, y: int, width: int, height: int, color: Color) -> None:
    canvas.box(x, y, width, height, GREY)
    canvas.box(x + 1, y + 1, width - 2, height - 2, WHITE)
    canvas.box(x + 2, y + height - 5, width - 4, 3, color)


def _legend(canvas: Canvas, scaled: ScaledMap, x: int, y: int) -> int:
    """Draws the colours of the scale's ends, and returns where it stops."""
    ends = [0.0] if not scaled.scale else [-1.0, 0.0, 1.0] if scaled.signed else [0.0, 1.0]
    colors = paper_colors(np.array(ends, np.float32))
    for end, color in zip(ends, colors, strict=True):
        canvas.box(x, y + 8, 14, 12, color.tolist())
        text = format_value(end * scaled.scale)
        canvas.text(x + 19, y + 18, text, size=8.5, color=GREY)
        x += 19 + round(text_width(text, 8.5)) + 14
    return x
