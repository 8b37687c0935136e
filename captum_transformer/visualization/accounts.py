"""Draws which parts of a model receive the relevance of a score, as bars."""

import math
import re
from collections.abc import Mapping

from matplotlib.figure import Figure

from captum_transformer.visualization.figure import new_figure

# Inches of a bar, of each further line of its name and of a letter; the names' share of the width.
_BAR, _LINE, _LETTER, _NAMES = 0.28, 0.15, 0.075, 0.45
_FOR, _AGAINST, _INPUTS = "#d8604a", "#4a78b5", "#404040"


def account_bars(
    shares: Mapping[str, float], caption: str = "", *, most: int = 16, width: float = 7.0
) -> Figure:
    """Draws a bar for each share of an account, from top to bottom in their order.

    Args:
        shares: The share of the total of each recipient: ``account.shares()``, or
            ``account.shares(by_source=True)`` for each module and parameter.
        caption: The title.
        most: The number of bars; the others are combined into one.
        width: The figure's width in inches.

    Returns:
        A Matplotlib figure; negative shares are bars to the left.

    Raises:
        ValueError: If there is nothing to draw, or if the total is zero, so shares are undefined.

    Example:
        >>> shares = {"inputs": 0.71, "biases": 0.17, "added constants": 0.12}
        >>> figure = account_bars(shares, "Full LRP")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['inputs', 'biases', 'added constants']
    """
    if not shares or most < 1:
        raise ValueError("There are no shares to draw.")
    bars = list(shares.items())
    if len(bars) > most:
        rest = bars[most - 1 :]
        bars = [*bars[: most - 1], (f"{len(rest)} more", sum(share for _, share in rest))]
    if wrong := [name for name, share in bars if not math.isfinite(share)]:
        raise ValueError(
            f"The shares of {', '.join(map(repr, wrong))} are not finite numbers: was the total "
            "zero, or not finite itself? The amounts are in `account.parts`."
        )
    names = [_broken(name, int(_NAMES * width / _LETTER)) for name, _ in bars]
    heights = [_BAR + _LINE * name.count("\n") for name in names]
    figure = new_figure(width, 0.9 + sum(heights))
    axes = figure.add_subplot()
    values = [100 * share for _, share in bars]
    colors = [
        _INPUTS if name.startswith("inputs") else _FOR if value >= 0 else _AGAINST
        for name, value in zip(names, values, strict=True)
    ]
    places = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]
    axes.barh(places, values, color=colors, height=0.7 * _BAR)
    axes.set_yticks(places, names, fontsize=9, parse_math=False)
    axes.set_ylim(sum(heights), 0)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.05)
    # Numbers are in a separate column, so that they don't cover anything.
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(places, [f"{value:.1f} %" for value in values], fontsize=8)
    numbers.tick_params(length=0)
    numbers.spines[:].set_visible(False)
    figure.supxlabel("share of the score's relevance in %", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(caption, fontsize=10, wrap=True, parse_math=False)
    return figure


def _broken(name: str, most: int) -> str:
    """Breaks a name after separators into lines of at most a number of letters."""
    lines = [""]
    for word in re.findall(rf"[^ ._/,]{{0,{most - 1}}}[ ._/,]?", name):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > most:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)
