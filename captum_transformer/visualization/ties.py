"""Draws the pairs of words or patches that make two inputs similar."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_transformer.visualization.canvas import BLACK, GREY, Color, Image, fit, text_width
from captum_transformer.visualization.colors import SIGNED_CMAP
from captum_transformer.visualization.figure import new_figure
from captum_transformer.visualization.maps import ScaledMap, Sign, check_finite
from captum_transformer.visualization.overlay import blend, to_display
from captum_transformer.visualization.panel import fit_height, format_value
from captum_transformer.visualization.token_scale import OffScale, as_mask, scale_without
from captum_transformer.visualization.tokens import visible

FOR: Color = SIGNED_CMAP(1.0)[:3]
AGAINST: Color = SIGNED_CMAP(0.0)[:3]

_ROW = 0.27  # inches
_GAP = 2.4  # inches between two texts
_SIZE = 10.0  # points
_LONGEST = 220.0  # pixels of a word
_HEIGHT = 320  # pixels that an image is shown with
_BETWEEN = 48  # pixels between two images


class Ties(NamedTuple):
    """The drawn pairs, the weakest first.

    Attributes:
        pairs: The row and column of each pair, ``(ties, 2)``.
        shares: The share of the scale of each pair, in [-1, 1].
        values: The relevance of each pair.
        scaled: The scaled relevance of all pairs.
        note: How many of all pairs are drawn, or empty if none is left out.
    """

    pairs: list[tuple[int, int]]
    shares: list[float]
    values: list[float]
    scaled: ScaledMap
    note: str


def strongest_ties(
    relevance: Tensor,
    most: int,
    off_scale: tuple[Tensor, Tensor] | None = None,
    *,
    sign: Sign = "auto",
    scale: float | None = None,
) -> Ties:
    """Finds the strongest pairs of a matrix, and their shares of the scale.

    Args:
        relevance: Finite values, ``(N1, N2)``.
        most: The maximum number of pairs.
        off_scale: Which tokens of either side don't set the scale.
        sign: Which part of the relevance is shown, see `scale_map`.
        scale: The relevance of the strongest tie; None: the largest that is on the scale.

    Returns:
        The pairs, without those whose relevance isn't shown.
    """
    if most < 1:
        raise ValueError(f"most must be a positive number of ties, got {most}.")
    check_finite(relevance)
    values = relevance.detach().float().cpu()
    rows, columns = off_scale or (torch.zeros(n, dtype=torch.bool) for n in values.shape)
    scaled = scale_without(values, rows[:, None] | columns, sign=sign, scale=scale)
    shares, flat = scaled.values.flatten(), values.flatten()
    order = torch.where(shares == 0, 0.0, flat.abs()).argsort(stable=True)
    order = order[shares[order] != 0]
    kept = order[-most:]
    note = f"the strongest {len(kept)} of {len(order)} pairs" if len(kept) < len(order) else ""
    pairs = [divmod(place, values.shape[1]) for place in kept.tolist()]
    return Ties(pairs, shares[kept].tolist(), flat[kept].tolist(), scaled, note)


def check_words(relevance: Tensor, one: Sequence[str], other: Sequence[str]) -> None:
    """Raises an error if a matrix doesn't have the shape of two texts."""
    if relevance.shape != (len(one), len(other)) or not relevance.numel():
        raise ValueError(
            f"{len(one)} and {len(other)} tokens need a relevance of the shape ({len(one)}, "
            f"{len(other)}), got {tuple(relevance.shape)}. Pass one pair of texts at a time, e.g. "
            "relevance[0], with the tokens of their padding or without both."
        )


def word_ties(
    relevance: Tensor,
    one: Sequence[str],
    other: Sequence[str],
    *,
    labels: tuple[str, str] = ("", ""),
    title: str = "",
    most: int = 400,
    sign: Sign = "auto",
    scale: float | None = None,
    off_scale: tuple[OffScale, OffScale] = (None, None),
) -> Figure:
    """Draws two texts as columns of words, with lines between the pairs of words.

    The stronger a pair's relevance, the more opaque its line. Red pairs make the texts more
    similar, blue pairs less.

    Args:
        relevance: ``(N1, N2)``, one sample of what `BiLRP` returns.
        one: The tokens of the text at the left, or its words.
        other: The tokens or words of the text at the right.
        labels: The descriptions of the texts.
        title: A title.
        most: How many lines to draw; the strongest pairs are chosen.
        sign: Which part of the relevance is shown, see `scale_map`.
        scale: The relevance of a tie that is opaque; None: the strongest.
        off_scale: For each token of both texts, whether it is left out when the scale is found,
            such as special tokens. These are grey.

    Returns:
        A figure; `to_array` converts it to pixels.

    Raises:
        ValueError: If the relevance doesn't fit the tokens, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = word_ties(torch.eye(3, 2), ["the", "film", "was"], ["the", "movie"])
        >>> len(figure.axes[0].collections[0].get_segments())
        2
    """
    check_words(relevance, one, other)
    texts = one, other
    off = as_mask(off_scale[0], len(one)), as_mask(off_scale[1], len(other))
    ties = strongest_ties(relevance, most, off, sign=sign, scale=scale)
    words = [[fit(visible(token), _LONGEST, _SIZE) for token in text] for text in texts]
    widths = [max(text_width(word, _SIZE) for word in each) / 100 + 0.1 for each in words]
    rows = max(map(len, texts))
    width = max(3.0, sum(widths) + _GAP)
    figure = new_figure(width + 0.2, rows * _ROW + 1.0 + 0.3 * bool(title))
    axes = figure.subplots()
    axes.set(xlim=(-widths[0], _GAP + widths[1]), ylim=(rows - 0.5, -0.5 - any(labels)))
    tops = [(rows - len(text)) / 2 for text in texts]
    _draw_curves(axes, ties, tops)
    for side, (align, x) in enumerate((("right", -0.05), ("left", _GAP + 0.05))):
        style: dict[str, Any] = {"ha": align, "va": "center", "parse_math": False}
        axes.text(x, -1 + tops[side], labels[side], fontsize=8, color=GREY, **style)
        for place, (word, left_out) in enumerate(zip(words[side], off[side].tolist(), strict=True)):
            color = GREY if left_out else BLACK
            axes.text(x, place + tops[side], word, fontsize=_SIZE, color=color, **style)
    notes = [ties.note, "grey: not on the scale" if any(bool(each.any()) for each in off) else ""]
    _finish(figure, axes, ties, title, "; ".join(filter(None, notes)))
    return figure


def patch_ties(
    image: Tensor,
    other: Tensor,
    relevance: Tensor,
    *,
    title: str = "",
    most: int = 12,
    sign: Sign = "auto",
    scale: float | None = None,
) -> Figure:
    """Draws two images side by side, with lines between the patches of the strongest pairs.

    Args:
        image: The image at the left: ``(3, H, W)``, ``(1, H, W)`` or ``(H, W)``, see `to_display`.
        other: The image at the right.
        relevance: ``(rows, columns, other rows, other columns)``: what `BiLRP` returns for one
            sample, with the patches of both arranged as grids. For 14 x 14 patches:
            ``relevance[0].unflatten(1, (14, 14)).unflatten(0, (14, 14))``.
        title: A title.
        most: How many pairs to draw.
        sign: Which part of the relevance is shown, see `scale_map`.
        scale: The relevance of a line that is opaque; None: the strongest.

    Returns:
        A figure; `to_array` converts it to pixels.

    Raises:
        ValueError: If the relevance is not that of two grids, or a value is not finite.

    Example:
        >>> import torch
        >>> one, other = torch.rand(3, 32, 32), torch.rand(3, 32, 48)
        >>> figure = patch_ties(one, other, torch.rand(2, 2, 2, 3), most=5)
        >>> len(figure.axes[0].collections[0].get_segments())
        5
    """
    if relevance.dim() != 4 or not relevance.numel():
        raise ValueError(
            "The relevance of two images' patches must have the shape (rows, columns, other rows, "
            f"other columns), got {tuple(relevance.shape)}. Of one sample with 14 x 14 patches in "
            "each: relevance[0].unflatten(1, (14, 14)).unflatten(0, (14, 14))."
        )
    pictures = [_grey(fit_height(to_display(each), _HEIGHT)) for each in (image, other)]
    grids = relevance.shape[:2], relevance.shape[2:]
    ties = strongest_ties(relevance.flatten(2).flatten(0, 1), most, sign=sign, scale=scale)
    lefts = 0, pictures[0].shape[1] + _BETWEEN
    whole = lefts[1] + pictures[1].shape[1]
    figure = new_figure(whole / 100 + 0.2, _HEIGHT / 100 + 0.8 + 0.3 * bool(title))
    axes = figure.subplots()
    sizes = []
    for picture, left, (rows, columns) in zip(pictures, lefts, grids, strict=True):
        width = picture.shape[1]
        axes.imshow(picture, extent=(left, left + width, _HEIGHT, 0), interpolation="antialiased")
        sizes.append((width / columns, _HEIGHT / rows))
    lines = []
    for pair, color in zip(ties.pairs, _colors(ties), strict=True):
        ends = []
        for place, left, grid, (width, height) in zip(pair, lefts, grids, sizes, strict=True):
            row, column = divmod(place, grid[1])
            corner = left + column * width, row * height
            frame = Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.8)
            axes.add_patch(frame)
            ends.append((corner[0] + width / 2, corner[1] + height / 2))
        lines.append(ends)
    # A pale rim, which fades with the line, so that the line is visible on a dark background.
    rims = [(1.0, 1.0, 1.0, 0.6 * abs(share)) for share in ties.shares]
    axes.add_collection(LineCollection(lines, colors=_colors(ties), linewidths=2))
    axes.add_collection(LineCollection(lines, colors=rims, linewidths=3.5, zorder=1.5))
    axes.set(xlim=(0, whole), ylim=(_HEIGHT, 0), aspect="equal")
    _finish(figure, axes, ties, title, ties.note)
    return figure


def _grey(picture: Image) -> Image:
    """Returns a picture in the grey behind heatmaps, so that colours only show relevance."""
    return blend(picture, ScaledMap(torch.zeros(picture.shape[:2]), 0.0, signed=False))


def _colors(ties: Ties) -> list[tuple[float, ...]]:
    return [(*(FOR if share > 0 else AGAINST), abs(share)) for share in ties.shares]


def _draw_curves(axes: Axes, ties: Ties, tops: Sequence[float]) -> None:
    """Draws lines that start and end horizontally, so that neighbours can be distinguished."""
    along = np.linspace(0, 1, 40)
    eased = along * along * (3 - 2 * along)
    curves = [
        np.stack([_GAP * along, row + tops[0] + (column + tops[1] - row - tops[0]) * eased], 1)
        for row, column in ties.pairs
    ]
    axes.add_collection(LineCollection(curves, colors=_colors(ties), linewidths=2.2))


def _finish(figure: Figure, axes: Axes, ties: Ties, title: str, note: str) -> None:
    """Adds the title, the note and the colour scale."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.set_xlabel(note, fontsize=8, color=GREY, parse_math=False)
    scaled, end = ties.scaled, ties.scaled.scale or 1.0
    low = -1.0 if scaled.signed else 0.0
    shares = np.linspace(low, 1, 256)[:, None]
    opaque = np.where(shares > 0, FOR, AGAINST)
    white = ListedColormap(np.abs(shares) * opaque + 1 - np.abs(shares))
    mappable = ScalarMappable(Normalize(low * end, end), white)
    style: dict[str, Any] = {"orientation": "horizontal", "shrink": 0.6, "pad": 0.02, "aspect": 30}
    bar = figure.colorbar(mappable, ax=axes, **style)
    ticks = [-end, 0.0, end] if scaled.signed else [0.0, end]
    bar.set_ticks(ticks, labels=[format_value(tick if scaled.scale else 0.0) for tick in ticks])
    bar.ax.tick_params(labelsize=8, labelcolor=GREY, color=GREY)
    bar.outline.set_visible(False)
