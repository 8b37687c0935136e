"""Functions shared by all figures: creation, frames, conversion to pixels.

A figure here is a `matplotlib.figure.Figure` without pyplot, so that no global state is touched and
nothing has to be closed; ``figure.savefig("picture.png")`` writes it, a notebook shows it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor, linspace

from captum_transformer.visualization.canvas import GREY, Image
from captum_transformer.visualization.maps import ScaledMap
from captum_transformer.visualization.overlay import blend
from captum_transformer.visualization.panel import format_value

_SMALL = 300


def to_array(figure: Figure) -> Image:
    """Renders a figure to pixels, for a logger or another picture.

    Args:
        figure: Any Matplotlib figure.

    Returns:
        A uint8 array ``(height, width, 3)``: the figure's size in inches times its ``dpi``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> to_array(Figure(figsize=(2, 1), dpi=50)).shape
        (50, 100, 3)
    """
    # Matplotlib has no annotations here.
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: Image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels


def new_figure(width: float, height: float) -> Figure:
    """Creates an empty figure whose layout avoids overlapping parts.

    Args:
        width: The width in inches.
        height: The height in inches.

    Returns:
        The figure.
    """
    # Memory for what is drawn grows with the area; a hundred rows shouldn't need a gigabyte.
    dpi = min(120.0, 12_000 / max(width, height))
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def show_image(axes: Axes, image: Image, title: str = "", note: str = "") -> None:
    """Puts a picture into a frame without ticks.

    Args:
        axes: The frame.
        image: The picture.
        title: The title above it.
        note: A small grey note below it.
    """
    # Enlarged pixels stay sharp squares.
    small = max(image.shape[:2]) < _SMALL
    axes.imshow(image, interpolation="nearest" if small else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    # parse_math=False: a dollar sign in a class or a token is a dollar sign.
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel(note, fontsize=8, color=GREY, parse_math=False)


def scale_note(scaled: ScaledMap) -> str:
    """Returns the attribution of the strongest colour as text, for a map with its own scale.

    Args:
        scaled: The map.

    Returns:
        For instance ``"0 … 0.012"`` or ``"±0.012"``; ``"all zero"`` for a map of zeros.
    """
    if not scaled.scale:
        return "all zero"
    return f"{'±' if scaled.signed else '0 … '}{format_value(scaled.scale)}"


def color_bar_of(figure: Figure, scaled: ScaledMap, axes: Sequence[Axes], label: str = "") -> None:
    """Draws the common colour scale of several overlays.

    Args:
        figure: The figure to draw in.
        scaled: One of the maps.
        axes: The frames that the scale belongs to; the bar is placed at their right.
        label: The quantity that the scale measures.
    """
    low = -1.0 if scaled.signed else 0.0
    values: Tensor = linspace(low, 1, 256)[None]
    # Over the grey of an image of one colour, so that the bar looks like the heatmap.
    grey = np.full((1, 256, 3), 128, np.uint8)
    colors = blend(grey, ScaledMap(values, scaled.scale, scaled.signed))[0] / 255
    end = scaled.scale or 1.0
    mappable = ScalarMappable(Normalize(low * end, end), ListedColormap(colors))
    bar = figure.colorbar(mappable, ax=list(axes), shrink=0.8, pad=0.02, aspect=30)
    ticks = [-end, 0.0, end] if scaled.signed else [0.0, end]
    bar.set_ticks(ticks, labels=[format_value(tick if scaled.scale else 0.0) for tick in ticks])
    bar.ax.tick_params(labelsize=8, labelcolor=GREY, color=GREY)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8, color=GREY)
