"""Time and peak memory of everything that explains a model, side by side."""

import gc
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.accelerator.record import Row
from benchmarks.cost.clock import Turns
from benchmarks.cost.contenders import (
    FORWARD,
    METHODS,
    REFERENCE,
    TRACED,
    Run,
    forward,
    forward_and_backward,
    forward_under_the_trace,
    others,
    ours,
)
from benchmarks.cost.memory import peak_bytes
from benchmarks.cost.subjects import Subject
from captum_transformer.calling.memory import give_back_cached


def contenders(subject: Subject) -> dict[str, Run]:
    """All that is measured on a model; the first is what the others are compared with."""
    runs: dict[str, Run] = {REFERENCE: partial(forward_and_backward, subject)}
    runs |= {FORWARD: partial(forward, subject), TRACED: partial(forward_under_the_trace, subject)}
    return runs | ours(subject) | others(subject)


# What may be done with a captured call.
WAYS: dict[str, Callable[[Any], Any]] = {
    "captured": lambda captured: captured,
    "compiled": lambda captured: captured.compile(),
    "CUDA graphs": lambda captured: captured.compile("reduce-overhead"),
}


def captured_contenders(subject: Subject, method: str, ways: Iterable[str]) -> dict[str, Run]:
    """A method as it is and as a captured call, which is captured and compiled when it first runs.

    Args:
        subject: the model and its input.
        method: the name of the method.
        ways: names of `WAYS`.
    """
    explainer = METHODS[method](subject.model)

    def later(way: str) -> Run:
        made: list[Any] = []

        def run() -> Any:
            if not made:
                made.append(WAYS[way](explainer.capture(subject.inputs, subject.target)))
            return made[0](subject.inputs, subject.target)

        return run

    runs: dict[str, Run] = {REFERENCE: partial(forward_and_backward, subject)}
    runs[method] = partial(explainer.attribute, subject.inputs, subject.target)
    return runs | {f"{method}, {way}": later(way) for way in ways}


def measured(
    subject: Subject,
    repeats: int,
    only: Collection[str] | None = None,
    runs: Mapping[str, Run] | None = None,
    **setting: object,
) -> list[Row]:
    """A row for each contender: seconds, mebibytes beside the model, and both to the reference's.

    What fails has a row that says why, and keeps the others from nothing.

    Args:
        subject: the model and its input.
        repeats: how many turns are timed.
        only: contenders beside the reference; all if None.
        runs: other contenders, the reference first.
        setting: further columns.
    """
    device = subject.inputs.device
    runs = dict(contenders(subject) if runs is None else runs)
    if only is not None:
        runs = {name: run for name, run in runs.items() if name == REFERENCE or name in only}
    setting = {"subject": subject.name, **setting, "batch_size": len(subject.inputs)}
    peaks: dict[str, int] = {}
    first: dict[str, float] = {}
    rows: list[Row] = []
    for name, run in runs.items():
        start = time.perf_counter()
        try:
            run()  # what is captured, compiled and allocated once
            first[name] = time.perf_counter() - start
            peaks[name] = max(1, peak_bytes(run, device))
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            rows.append({**setting, "contender": name, "failed": reason})
        clean_up()
    working = {name: runs[name] for name in peaks}
    if REFERENCE not in working:
        return rows
    turns = Turns(working, repeats)
    return [
        {
            **setting,
            "contender": name,
            "first call (s)": first[name],
            "seconds": turns.median(name),
            "ratio": turns.ratio(name, REFERENCE),
            "mebibytes": peak / 2**20,
            "of memory": peak / peaks[REFERENCE],
        }
        for name, peak in peaks.items()
    ] + rows


def clean_up() -> None:
    """Gives memory back, so that the next finds what this one found."""
    gc.collect()
    give_back_cached()
    torch.set_grad_enabled(True)
