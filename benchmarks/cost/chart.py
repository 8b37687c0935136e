"""The timings as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BREAK = 6  # ratios up to here have the wide part of the axis; the few above it have the narrow one
MARKS = "osD^vP"


def draw(times: Sequence[dict[str, Any]], title: str, out: Path) -> None:
    """Ratios: a row for each contender, a mark for each model, and an axis that is broken.

    Args:
        times: rows with ``contender``, ``subject``, ``batch_size`` and ``ratio``.
        title: on what it was measured.
        out: the file to write; its suffix says in which format.
    """
    contenders = list(dict.fromkeys(row["contender"] for row in times))[::-1]
    subjects = list(dict.fromkeys(row["subject"] for row in times))
    above = [row["ratio"] for row in times if row["ratio"] > BREAK]
    figure, both = plt.subplots(
        1,
        2 if above else 1,
        figsize=(9, 0.34 * len(contenders) + 1.9),
        sharey=True,
        squeeze=False,
        layout="constrained",
        gridspec_kw={"width_ratios": [5, 1] if above else [1], "wspace": 0.02},
    )
    for axes in both[0]:
        for number, subject in enumerate(subjects):
            rows = [row for row in times if row["subject"] == subject]
            axes.scatter(
                [row["ratio"] for row in rows],
                [contenders.index(row["contender"]) for row in rows],
                s=[18 + 10 * row["batch_size"] ** 0.5 for row in rows],
                marker=MARKS[number % len(MARKS)],
                alpha=0.75,
                label=subject,
            )
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    first = both[0, 0]
    first.set_xlim(0, BREAK)
    first.axvline(1, color="0.4", linewidth=1.2, zorder=0)
    first.set_yticks(range(len(contenders)), contenders)
    first.set_xlabel("time, as a multiple of a plain forward and backward pass to the input")
    first.set_title(title, fontsize=9, loc="left")
    first.legend(fontsize=8, loc="lower right", title="larger mark: larger batch", title_fontsize=7)
    if above:
        _break(first, both[0, 1])
        both[0, 1].set_xlim(min(above) - 3, max(above) + 3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _break(left: Axes, right: Axes) -> None:
    """Opens the frame between two parts of an axis, and marks where."""
    left.spines["right"].set_visible(False)
    right.spines["left"].set_visible(False)
    right.tick_params(left=False)
    slash = {
        "marker": [(-1, -1.6), (1, 1.6)],
        "markersize": 9,
        "linestyle": "none",
        "color": "0.2",
        "clip_on": False,
    }
    left.plot([1, 1], [0, 1], transform=left.transAxes, **slash)
    right.plot([0, 0], [0, 1], transform=right.transAxes, **slash)
