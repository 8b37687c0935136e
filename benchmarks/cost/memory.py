"""The peak of what a run allocates, as the allocator's own record tells."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cost.contenders import METHODS, REFERENCE, Run, forward_and_backward, ours
from benchmarks.cost.subjects import Subject


def peak_bytes(run: Run, device: torch.device) -> int:
    """The largest total of what a run allocates on the device at a time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = [event for event in results if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def peaks(subject: Subject, methods: Sequence[str] = tuple(METHODS)) -> list[dict[str, Any]]:
    """The peak of each method beside the model and its input, in MiB and to the reference's.

    The seconds are those of a run whose allocations are recorded.
    """
    runs: dict[str, Run] = {REFERENCE: partial(forward_and_backward, subject)}
    runs |= {name: run for name, run in ours(subject).items() if name in methods}
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        start = time.perf_counter()
        mebibytes = peak_bytes(run, subject.inputs.device) / 2**20
        took = time.perf_counter() - start
        ratio = mebibytes / rows[0]["mebibytes"] if rows else 1.0
        row = {"subject": subject.name, "contender": name, "mebibytes": mebibytes}
        rows.append({**row, "seconds": took, "ratio": ratio})
    return rows
