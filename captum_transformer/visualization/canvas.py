"""A small canvas for images and text.

It draws with Matplotlib's Agg renderer and without a figure, so pyplot's global state is
unaffected, images keep their exact pixels, and a panel takes milliseconds.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform

Image: TypeAlias = npt.NDArray[np.uint8]
"""A picture: uint8 values of the shape (height, width, 3)."""

Color: TypeAlias = Sequence[float]
"""Red, green and blue, each in [0, 1]."""

BLACK: Color = (0.13, 0.13, 0.13)
GREY: Color = (0.42, 0.42, 0.42)
WHITE: Color = (1.0, 1.0, 1.0)

_DPI = 100
_ELLIPSIS = "…"


class Canvas:
    """A white surface with its origin at the top left; all lengths are in pixels.

    Args:
        width: The width.
        height: The height.

    Attributes:
        width: The width.
        height: The height.

    Example:
        >>> canvas = Canvas(80, 20)
        >>> canvas.text(4, 15, "zebra")
        >>> canvas.image().shape
        (20, 80, 3)
    """

    def __init__(self, width: int, height: int) -> None:
        self._renderer = _renderer(width, height)
        self.width, self.height = width, height
        # Pasting into the renderer's own buffer avoids resampling.
        self._pixels = np.asarray(self._renderer.buffer_rgba())
        self._pixels[...] = 255

    def paste(self, image: Image, x: int, y: int) -> None:
        """Puts an image with its top left corner at (x, y)."""
        height, width = image.shape[:2]
        self._pixels[y : y + height, x : x + width, :3] = image

    def box(self, x: int, y: int, width: int, height: int, color: Color) -> None:
        """Fills a rectangle with rounded corners."""
        graphics = self._renderer.new_gc()
        graphics.set_linewidth(0)
        path = _rounded(x, self.height - y - height, width, height)
        self._renderer.draw_path(graphics, path, IdentityTransform(), (*color, 1.0))
        graphics.restore()

    def text(
        self,
        x: float,
        y: float,
        string: str,
        *,
        size: float = 10,
        color: Color = BLACK,
    ) -> None:
        """Writes one line, whose baseline starts at (x, y)."""
        graphics = self._renderer.new_gc()
        graphics.set_foreground((*color, 1.0), isRGBA=True)
        # ismath=False: a dollar sign in a caption or a token is a dollar sign.
        self._renderer.draw_text(graphics, x, y, string, FontProperties(size=size), 0, False)  # noqa: FBT003
        graphics.restore()

    def image(self) -> Image:
        """Returns a copy of the picture drawn so far."""
        picture: Image = self._pixels[..., :3].copy()
        return picture


def text_width(string: str, size: float = 10) -> float:
    """Returns the width of one line of text in pixels.

    Args:
        string: The text.
        size: The font size in points.

    Returns:
        The width.
    """
    width, _, _ = _measure().get_text_width_height_descent(string, FontProperties(size=size), False)  # noqa: FBT003
    return float(width)


def fit(string: str, width: float, size: float = 10) -> str:
    """Shortens a text with an ellipsis until it fits.

    Args:
        string: One line of text.
        width: The available width in pixels.
        size: The font size in points.

    Returns:
        The text, or its beginning and an ellipsis.
    """
    if text_width(string, size) <= width:
        return string
    # Bisection, since a caption may be a whole document.
    fits, fails = 0, len(string)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if text_width(string[:middle].rstrip() + _ELLIPSIS, size) <= width:
            fits = middle
        else:
            fails = middle
    return string[:fits].rstrip() + _ELLIPSIS


@cache
def _measure() -> Any:
    return _renderer(1, 1)


def _renderer(width: int, height: int) -> Any:
    # Matplotlib has no annotations here.
    create: Any = RendererAgg
    return create(width, height, _DPI)


def _rounded(x: float, y: float, width: float, height: float, radius: float = 3) -> Path:
    right, top = x + width, y + height
    corners = [
        ((x, y + radius), (x, y), (x + radius, y)),
        ((right - radius, y), (right, y), (right, y + radius)),
        ((right, top - radius), (right, top), (right - radius, top)),
        ((x + radius, top), (x, top), (x, top - radius)),
    ]
    vertices = [point for corner in corners for point in corner]
    codes = [Path.LINETO, Path.CURVE3, Path.CURVE3] * 4
    codes[0] = Path.MOVETO
    return Path([*vertices, vertices[0]], [*codes, Path.CLOSEPOLY])
