"""Compares a run with the committed results: which ratio has moved by more than noise?

python -m benchmarks.cost --results /tmp/cost
python -m benchmarks.cost.compare /tmp/cost

How noisy both runs were is read off what this project doesn't change: a plain forward pass and the
methods of other packages, which are measured in the same turns. The exit status is 1 if something
costs more.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cost.contenders import FORWARD, REFERENCE

RESULTS = Path(__file__).parents[1] / "results"
CONTROLS = (
    FORWARD,
    "Captum InputXGradient",
    "Captum LayerGradCam",
    "pytorch-grad-cam GradCAM",
)
# Bytes are counted, but allocators round; what a process has resident at its peak varies more.
OF_BYTES = {"memory": 1.05, "long": 1.1}
# No machine is quieter; and what is believed of parts without anything to compare with.
QUIET, UNKNOWN = 1.05, 1.25

# Where a row has its ratios, and what they are called in addition to the row.
COLUMNS = {"ratio": (), "eager": ("eager",), "captured": ("captured",), "compiled": ("compiled",)}

Results = dict[str, Any]
Key = tuple[Any, ...]


class Moved(NamedTuple):
    """A ratio that isn't what it was."""

    part: str
    what: str
    before: float
    now: float

    @property
    def growth(self) -> float:
        return self.now / self.before


def ratios(results: Results) -> dict[Key, float]:
    """The ratio of each row, by what the row is of."""
    shown = ("subject", "batch_size", "contender", "weights", "factor")
    return {
        (*(str(row[name]) for name in shown if name in row), *which): row[column]
        for row in results["rows"]
        if row.get("contender") != REFERENCE
        for column, which in COLUMNS.items()
        if row.get(column) is not None
    }


def noise(part: str, before: Results, now: Results) -> dict[str, float]:
    """By which factor a ratio may move with nothing changed, for each model and batch."""
    old, new = ratios(before), ratios(now)
    limits: dict[str, float] = {}
    for key in old.keys() & new.keys():
        if part in OF_BYTES:
            limits[_setting(key)] = OF_BYTES[part]
        elif {*key} & {*CONTROLS}:
            known = limits.get(_setting(key), QUIET)
            limits[_setting(key)] = max(known, factor(old[key], new[key]))
    return limits


def _setting(key: Key) -> str:
    """Model and batch: all of these was measured in the same turns."""
    return ", ".join(key[:2] if key[1:2] and key[1].isdigit() else key[:1])


def factor(one: float, other: float) -> float:
    """How many times as large the larger of two is."""
    return math.exp(abs(math.log(one / other)))


def moved(part: str, before: Results, now: Results) -> list[Moved]:
    """What has moved by more than noise, what costs more first."""
    old, new = ratios(before), ratios(now)
    limits = noise(part, before, now)
    found = [
        Moved(part, ", ".join(key), old[key], new[key])
        for key in new
        if key in old
        and not {*key} & {*CONTROLS}
        and factor(old[key], new[key]) > limits.get(_setting(key), UNKNOWN)
    ]
    return sorted(found, key=lambda each: -each.growth)


def report(part: str, before: Results, now: Results) -> Iterator[str]:
    """What is to be said of a part."""
    old, new = ratios(before), ratios(now)
    common = len(old.keys() & new.keys())
    limits = [f"{100 * (limit - 1):.0f} %" for limit in sorted(noise(part, before, now).values())]
    said = f"from {limits[0]} to {limits[-1]}" if limits else f"unknown, {UNKNOWN - 1:.0%} allowed"
    yield f"{part}: {common} ratios in both runs, noise {said}"
    for name, value in now["setting"].items():
        if (was := before["setting"].get(name)) != value:
            yield f"  {name} was {was}, is {value}: the ratios may have moved for that alone"
    for side, missing in (
        ("committed results", new.keys() - old.keys()),
        ("run", old.keys() - new.keys()),
    ):
        if missing:
            first = ", ".join(min(missing))
            yield f"  {len(missing)} ratios are not in the {side}, such as {first}"
    for each in moved(part, before, now):
        yield (
            f"  {'MORE' if each.growth > 1 else 'less'}: {each.what}: was {each.before:.2f}, "
            f"is {each.now:.2f} ({100 * (each.growth - 1):+.0f} %)"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "run", type=Path, help="the folder of --results of python -m benchmarks.cost"
    )
    parser.add_argument("--committed", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)

    more = compared = 0
    for path in sorted(given.run.glob("*.json")):
        part = path.stem.split("_")[0]
        now = json.loads(path.read_text(encoding="utf-8"))
        if not (given.committed / path.name).exists():
            print(f"{path.stem}: nothing committed to compare with")
            continue
        before = json.loads((given.committed / path.name).read_text(encoding="utf-8"))
        print("\n".join(report(part, before, now)))
        compared += len(ratios(before).keys() & ratios(now).keys())
        more += sum(each.growth > 1 for each in moved(part, before, now))
    kind = {path.stem.partition("_")[2] for path in given.run.glob("*.json")}
    for path in sorted(given.committed.glob("*_*.json")):
        if path.stem.partition("_")[2] in kind and not (given.run / path.name).exists():
            print(f"{path.stem}: not in the run")
    if not compared:
        print(f"{given.run} has no results of the models and batches that are committed.")
        return 2
    print(f"{more} of {compared} ratios cost more than they did.")
    return int(more > 0)


if __name__ == "__main__":
    sys.exit(main())
