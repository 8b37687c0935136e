"""Timing side by side: all contenders in turns, so that what disturbs one disturbs the others."""

import statistics
import time
from collections.abc import Mapping

from benchmarks.cost.contenders import Run
from benchmarks.device import wait


def seconds(run: Run) -> float:
    """The time that a run takes, with the work of the device that it has started."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


class Turns:
    """Timings of several runs, taken in turns after one turn to warm up.

    Args:
        runs: what to time, by name.
        repeats: how many turns.
    """

    def __init__(self, runs: Mapping[str, Run], repeats: int) -> None:
        for run in runs.values():
            run()
        self._turns = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats)]

    def median(self, name: str) -> float:
        """The median of a run's times."""
        return statistics.median(turn[name] for turn in self._turns)

    def ratio(self, name: str, reference: str) -> float:
        """The median, over the turns, of how many times as long a run takes as another one."""
        return statistics.median(turn[name] / turn[reference] for turn in self._turns)

    def to_several(self, several: str, one: str, forward: str, count: int) -> float:
        """How long ``count`` targets take, to one forward and ``count`` times the backward part.

        The backward part of a method is what it takes for one target less a forward pass.
        """
        return statistics.median(
            turn[several] / (turn[forward] + count * (turn[one] - turn[forward]))
            for turn in self._turns
        )
