"""The attribution of a text: its tokens as coloured boxes, and a table of the exact values."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
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
from captum_transformer.visualization.maps import Sign, check_finite, scale_map
from captum_transformer.visualization.overlay import SIGNED_CMAP
from captum_transformer.visualization.panel import CAPTION_LINE, MARGIN, format_value, write_caption

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
) -> Image:
    """Draws the tokens of a text as boxes whose colour is their attribution.

    White is zero, red speaks for the class, blue against it; the legend at the bottom names the
    attribution of the strongest colour. Lines wrap at the picture's width. The font is Matplotlib's
    ``rcParams["font.family"]``; add one there for scripts that its default lacks.

    Args:
        tokens: The N tokens as strings.
        attribution: One value per token, ``(N,)``, or ``(N, D)`` for the values of an embedding,
            which are summed.
        caption: One or several lines, see `panel`.
        width: The picture's width in pixels.
        sign: Which part of the attribution is shown, see `scale_map`.
        scale: The attribution with the strongest colour; None: each text has its own.

    Returns:
        A uint8 array ``(height, width, 3)``.

    Raises:
        ValueError: If the tokens and the attribution don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> token_strip(["a", "fine", "film"], torch.tensor([0.1, 0.9, 0.2])).shape
        (72, 640, 3)
    """
    values = token_values(tokens, attribution)
    if width < 100:
        raise ValueError(f"width must be at least 100 pixels, got {width}.")
    scaled = scale_map(values, sign=sign, scale=scale, quantile=1.0)
    texts = [fit(visible(token), width - 2 * (MARGIN + _PADDING), _SIZE) for token in tokens]
    widths = [round(text_width(text, _SIZE)) + 2 * _PADDING for text in texts]
    places, rows = _wrap(widths, width - 2 * MARGIN)
    lines = caption.splitlines()
    top = MARGIN + len(lines) * CAPTION_LINE
    canvas = Canvas(width, top + rows * _ROW + _LEGEND + MARGIN - 4)
    write_caption(canvas, lines)
    for text, box, (x, row), value in zip(
        texts, widths, places, scaled.values.tolist(), strict=True
    ):
        y = top + row * _ROW
        background = _background(value)
        canvas.box(MARGIN + x, y, box, _BOX, background)
        ink = WHITE if _luminance(background) < 0.45 else BLACK
        canvas.text(MARGIN + x + _PADDING, y + 17, text, size=_SIZE, color=ink)
    ends = [0.0] if not scaled.scale else [-1.0, 0.0, 1.0] if scaled.signed else [0.0, 1.0]
    _legend(canvas, [(end, end * scaled.scale) for end in ends], top + rows * _ROW)
    return canvas.image()


def token_table(tokens: Sequence[str], attribution: Tensor) -> str:
    """Writes the exact attribution of each token as a Markdown table.

    Args:
        tokens: The N tokens as strings. They are escaped, so that ``**``, ``|`` or ``<b>`` in a
            text show as what they are.
        attribution: ``(N,)`` or ``(N, D)``, as for `token_strip`.

    Returns:
        The table.

    Raises:
        ValueError: If the tokens and the attribution don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> print(token_table(["good", "|"], torch.tensor([0.75, -0.5])))
        | # | token | attribution |
        | --: | :-- | --: |
        | 0 | good | 0.75 |
        | 1 | &#124; | -0.5 |
    """
    values = token_values(tokens, attribution).tolist()
    rows = [
        f"| {number} | {_escape(visible(token))} | {value:.6g} |"
        for number, (token, value) in enumerate(zip(tokens, values, strict=True))
    ]
    return "\n".join(["| # | token | attribution |", "| --: | :-- | --: |", *rows])


def token_values(tokens: Sequence[str], attribution: Tensor) -> Tensor:
    """Reduces the attribution of one text to a value per token.

    Args:
        tokens: The N tokens as strings.
        attribution: ``(N,)``, or ``(N, D)``, whose features are summed.

    Returns:
        Detached float32 values ``(N,)``.

    Raises:
        ValueError: If the shape is another one, or a value is not finite.
    """
    if attribution.dim() not in (1, 2) or attribution.shape[0] != len(tokens) or not len(tokens):
        raise ValueError(
            f"{len(tokens)} tokens need an attribution of the shape (N,) or (N, D) with one entry "
            f"for each, got {tuple(attribution.shape)}. Pass one text at a time, with the tokens "
            "of its padding or without both."
        )
    check_finite(attribution)
    values = attribution.detach().float()
    return values if values.dim() == 1 else values.sum(1)


def visible(token: str) -> str:
    r"""Makes those characters of a token visible that have no shape or would break the line.

    Args:
        token: Any string.

    Returns:
        One line of text, never empty.

    Example:
        >>> visible("one\ntwo"), visible(" "), visible("")
        ('one⏎two', '␣', '∅')
    """
    line = token.replace("\n", "⏎").replace("\t", "⇥")
    line = "".join(character if character.isprintable() else "�" for character in line)
    return line if line.strip() else "␣" * len(line) or "∅"


def _wrap(widths: Sequence[int], room: int) -> tuple[list[tuple[int, int]], int]:
    """Where each box goes, as its x and its row, and the number of rows."""
    places, x, row = [], 0, 0
    for width in widths:
        if x and x + width > room:
            x, row = 0, row + 1
        places.append((x, row))
        x += width + _GAP
    return places, row + 1


def _background(value: float) -> Color:
    # Short of the ends of the colour map, which are nearly black.
    red, green, blue, _ = colormaps[SIGNED_CMAP](0.5 + 0.43 * value)
    return red, green, blue


def _luminance(color: Color) -> float:
    return float(np.dot(color, (0.299, 0.587, 0.114)))


def _legend(canvas: Canvas, entries: Sequence[tuple[float, float]], y: int) -> None:
    x = MARGIN
    for position, value in entries:
        canvas.box(x, y + 8, 14, 12, _background(position))
        text = format_value(value)
        canvas.text(x + 19, y + 18, text, size=8.5, color=GREY)
        x += 19 + round(text_width(text, 8.5)) + 14


def _escape(text: str) -> str:
    # Entities rather than backslashes: Markdown dialects differ in what a backslash escapes, and
    # none of them reads an entity as syntax.
    return re.sub(r"[^\w\s]|_", lambda match: f"&#{ord(match[0])};", text)
