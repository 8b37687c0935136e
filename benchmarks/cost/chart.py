"""The timings as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator

TICKS = (0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)


def draw(times: Sequence[dict[str, Any]], title: str, out: Path) -> None:
    """Ratios on a logarithmic axis: a row for each contender, a mark for each model.

    Args:
        times: rows with ``contender``, ``subject``, ``batch_size`` and ``ratio``.
        title: on what it was measured.
        out: the file to write; its suffix says in which format.
    """
    contenders = list(dict.fromkeys(row["contender"] for row in times))[::-1]
    subjects = list(dict.fromkeys(row["subject"] for row in times))
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(contenders) + 1.8), layout="constrained")
    for number, subject in enumerate(subjects):
        rows = [row for row in times if row["subject"] == subject]
        axes.scatter(
            [row["ratio"] for row in rows],
            [contenders.index(row["contender"]) for row in rows],
            s=[18 + 10 * row["batch_size"] ** 0.5 for row in rows],
            marker="osD^vP"[number % 6],
            alpha=0.75,
            label=subject,
        )
    axes.axvline(1, color="0.5", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(contenders)), contenders)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("time, as a multiple of a plain forward and backward pass to the input")
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(fontsize=8, loc="upper right", title="larger mark: larger batch", title_fontsize=7)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)
