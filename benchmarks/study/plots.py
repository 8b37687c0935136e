"""Pictures of the results."""

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from benchmarks.study.methods import CAPTUM, PAIRS, PATCHING, RANDOM, TRANSFORMER, plain
from benchmarks.study.store import SCATTER
from benchmarks.study.tables import ARROWS, Record

ORDER = (*TRANSFORMER, *CAPTUM, RANDOM, *PATCHING, *PAIRS)
HUES = (
    "C0 C1 C2 C3 C4 magenta purple teal olive C5 C6 peru navy C8 C9 0.3 0.5 0.7 0 "
    "teal C0 0.5 "
    "C0 C1 C2 C3 C4 C5 0.3 0.5"
)
DPI = 90
COLOURS = dict(zip(ORDER, HUES.split(), strict=True))


def draw_all(records: list[Record], folder: Path) -> list[Path]:
    """Draws what there is to draw of each record."""
    paths = []
    for found in records:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", found["name"]).strip("-")
        paths.append(draw_scores(found, folder / f"{stem}-scores.png"))
        curves = {
            f"{metric}: {name}": of_methods
            for metric, entry in found["metrics"].items()
            for name, of_methods in entry["curves"].items()
        }
        lines = {name: c for name, c in curves.items() if not name.endswith(SCATTER)}
        scatters = [c for name, c in curves.items() if name.endswith(SCATTER)]
        if lines:
            paths.append(draw_curves(found["name"], lines, folder / f"{stem}-curves.png"))
        for number, points in enumerate(scatters, 1):
            path = folder / f"{stem}-conservation{f'-{number}' if number > 1 else ''}.png"
            paths.append(draw_scatter(found["name"], points, path))
    return paths


def draw_scores(found: Record, path: Path) -> Path:
    """A panel for each score, a line for each method: the figure and its interval."""
    names = [name for entry in found["metrics"].values() for name in entry["scores"]]
    scores = {
        f"{metric}: " * (names.count(name) > 1) + f"{name} {ARROWS[column['better']]}": column[
            "methods"
        ]
        for metric, entry in found["metrics"].items()
        for name, column in entry["scores"].items()
        if metric != "conservation" or len(found["metrics"]) == 1
    }
    methods = sorted({m for rows in scores.values() for m in rows}, key=_place, reverse=True)
    rows = -(-len(scores) // 5)
    columns = -(-len(scores) // rows)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.2 + 2.3 * columns, rows * (0.21 * len(methods) + 0.7)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis in axes.flat[len(scores) :]:
        axis.set_axis_off()
    for axis, (title, of_methods) in zip(axes.flat, scores.items(), strict=False):
        for height, method in enumerate(methods):
            if method not in of_methods:
                continue
            row = of_methods[method]
            style = {"color": _colour(method), "marker": "o" if method == plain(method) else "s"}
            axis.plot([row["low"], row["high"]], [height, height], color=_colour(method), lw=1.5)
            axis.plot(row["value"], height, ms=4, **style)
        if RANDOM in of_methods:
            axis.axvline(of_methods[RANDOM]["value"], color="0.6", lw=0.8, ls=":")
        axis.set_yticks(range(len(methods)), methods, fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(title, fontsize=8)
    return _saved(figure, path)


def draw_curves(title: str, lines: dict[str, Any], path: Path) -> Path:
    """A panel for each kind of curve, a line for each method."""
    columns = min(2, len(lines))
    rows = -(-len(lines) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns + 2.4, 2.7 * rows),
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, of_methods) in zip(axes.flat, lines.items(), strict=False):
        for method in sorted(of_methods, key=_place):
            x, y = of_methods[method]
            if method != plain(method):
                continue
            axis.plot(x, y, color=_colour(method), ls=_dashes(method), lw=1.3, label=method)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("share of places that were changed", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(lines) :]:
        axis.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7, title=title)
    return _saved(figure, path)


def draw_scatter(title: str, points: dict[str, Any], path: Path) -> Path:
    """ICML 2022, figure 3: the sum of relevance over the score, a panel for each method."""
    methods = sorted(points, key=_place)
    figure, axes = plt.subplots(
        1, len(methods), figsize=(2.1 * len(methods), 2.4), squeeze=False, layout="constrained"
    )
    for axis, method in zip(axes.flat, methods, strict=True):
        x, y = points[method]
        axis.scatter(x, y, s=5, alpha=0.5, color=_colour(method), lw=0)
        axis.axline((0, 0), slope=1, color="0.5", lw=0.8, ls=":")
        axis.set_title(method.replace(", ", ",\n"), fontsize=7)
        axis.tick_params(labelsize=6)
        axis.set_xlabel("score", fontsize=7)
    axes[0, 0].set_ylabel(f"{title}: sum of relevance", fontsize=7)
    return _saved(figure, path)


def _place(method: str) -> tuple[int, bool]:
    return ORDER.index(plain(method)), method != plain(method)


def _colour(method: str) -> Any:
    return COLOURS[plain(method)]


def _dashes(method: str) -> str:
    return "-" if method in TRANSFORMER else "--" if method in CAPTUM else ":"


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(DPI)
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    # Few colours make small files.
    drawn.quantize(128, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    return path
