"""Where the relevance of a score went, as bars."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from captum_transformer.visualization.figure import new_figure

_BAR = 0.28
_FOR, _AGAINST, _INPUTS = "#d8604a", "#4a78b5", "#404040"


def account_bars(
    shares: Mapping[str, float], caption: str = "", *, most: int = 16, width: float = 7.0
) -> Figure:
    """Draws a bar for each taker of relevance, from the top in the order in which they come.

    Args:
        shares: What each got as a share of the total: ``account.shares()``, or
            ``account.shares(by_source=True)`` for each module and parameter.
        caption: The title.
        most: How many bars; the others are one together.
        width: The figure's width in inches.

    Returns:
        A Matplotlib figure; a bar to the left took less than nothing.

    Raises:
        ValueError: If there is nothing to draw.

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
    figure = new_figure(width, 0.9 + _BAR * len(bars))
    axes = figure.add_subplot()
    names = [name for name, _ in bars]
    values = [100 * share for _, share in bars]
    colors = [
        _INPUTS if name.startswith("inputs") else _FOR if value >= 0 else _AGAINST
        for name, value in zip(names, values, strict=True)
    ]
    drawn = axes.barh(range(len(bars)), values, color=colors, height=0.7)
    axes.bar_label(drawn, fmt="%.1f %%", padding=3, fontsize=8)
    axes.set_yticks(range(len(bars)), names, fontsize=9)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_xlabel("share of the score's relevance in %", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(caption, fontsize=10, loc="left")
    return figure
