"""Results with their confidence intervals, for programs and for people."""

from dataclasses import asdict
from typing import Any

from benchmarks.study.bootstrap import Score, draw
from benchmarks.study.methods import PIXELS, RANDOM
from benchmarks.study.papers import compare
from benchmarks.study.subject import Studied

Record = dict[str, Any]
"""What is known of a subject, as plain values that JSON has."""

ARROWS = {"high": "↑", "low": "↓", "none": ""}


def record(studied: Studied) -> Record:
    """Summarises what came out."""
    metrics: dict[str, Any] = {}
    for metric, by_method in studied.results.items():
        names = next(iter(by_method.values())).scores
        scores = {
            name: {method: measured.scores[name] for method, measured in by_method.items()}
            for name in names
        }
        found: dict[str, Any] = {}
        for name, of_methods in scores.items():
            found[name] = _column(of_methods)
            if (comparison := compare(studied.name, metric, name, of_methods)) is not None:
                found[name]["published"] = asdict(comparison)
        curves = {
            name: {method: measured.curves[name] for method, measured in by_method.items()}
            for name in next(iter(by_method.values())).curves
        }
        metrics[metric] = {"scores": found, "curves": curves}
    return {
        "name": studied.name,
        "facts": studied.facts,
        "metrics": metrics,
        "seconds": studied.seconds,
    }


def _column(of_methods: dict[str, Score]) -> dict[str, Any]:
    better = next(iter(of_methods.values())).better
    sign = {"high": 1, "low": -1, "none": 0}[better]
    drawn = {method: draw(score) for method, score in of_methods.items()}
    best = max(drawn, key=lambda method: sign * drawn[method].value)
    rows = {}
    for method, found in drawn.items():
        behind = drawn[best].minus(found).interval()
        as_good_as_best = bool(sign) and behind.low <= 0 <= behind.high
        beats_chance = None
        # Single pixels do more harm than patches, so chance is that of the same places.
        chance = RANDOM + PIXELS if method.endswith(PIXELS) else RANDOM
        if chance in drawn and sign and method != chance:
            ahead = found.minus(drawn[chance]).interval()
            beats_chance = (ahead.low if sign > 0 else -ahead.high) > 0
        rows[method] = {
            **asdict(found.interval()),
            "as_good_as_best": as_good_as_best,
            "beats_chance": beats_chance,
        }
    return {"better": better, "methods": rows}


def markdown(found: Record) -> str:
    """A section: the facts and a table for each metric."""
    parts = [f"## {found['name']}"]
    parts.append("\n".join(f"- {name}: {fact}" for name, fact in found["facts"].items()))
    parts += [table(metric, entry["scores"]) for metric, entry in found["metrics"].items()]
    return "\n\n".join(parts)


def table(metric: str, scores: dict[str, Any]) -> str:
    """One row for each method, the best of the first score on top."""
    first = next(iter(scores.values()))
    sign = 1 if first["better"] == "low" else -1
    methods = sorted(first["methods"], key=lambda m: sign * first["methods"][m]["value"])
    heads = [f"{name} {ARROWS[column['better']]}".strip() for name, column in scores.items()]
    lines = [f"| {metric} | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for method in methods:
        cells = [_cell(column, method) for column in scores.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(column: dict[str, Any], method: str) -> str:
    row = column["methods"][method]
    large = max(abs(each["value"]) for each in column["methods"].values()) >= 10
    digits = 1 if large else 3
    value = f"{row['value']:.{digits}f}"
    if row["as_good_as_best"]:
        value = f"**{value}**"
    elif row["beats_chance"] is False:
        value = f"*{value}*"
    return f"{value} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
