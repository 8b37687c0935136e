"""The peak of what a run allocates, as the allocator's own record tells."""

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cost.contenders import METHODS, REFERENCE, Run, forward_and_backward, ours
from benchmarks.cost.subjects import Subject
from benchmarks.device import wait

STATUS = Path("/proc/self/status")


def peak_bytes(run: Run, device: torch.device) -> int:
    """The largest total of what a run allocates on the device at a time."""
    if device.type != "cpu":
        backend = torch.get_device_module(device)
        wait()
        backend.reset_peak_memory_stats()
        before: int = backend.memory_allocated()
        run()
        return int(backend.max_memory_allocated()) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = [event for event in results if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def resident_peak_bytes(run: Run, device: torch.device) -> int:
    """By how much a run makes the process larger at its peak, as Linux (with glibc) counts it.

    For runs of so many operations that the record of their allocations would be larger than they.
    """
    if device.type != "cpu":
        return peak_bytes(run, device)

    def kibibytes(name: str) -> int:
        (line,) = (
            line
            for line in STATUS.read_text(encoding="utf-8").splitlines()
            if line.startswith(name)
        )
        return int(line.split()[1])

    ctypes.CDLL(None).malloc_trim(0)
    (STATUS.parent / "clear_refs").write_text("5", encoding="utf-8")
    before = kibibytes("VmRSS")
    run()
    return 2**10 * max(1, kibibytes("VmHWM") - before)


def peaks(
    subject: Subject,
    methods: Sequence[str] = tuple(METHODS),
    measure: Callable[[Run, torch.device], int] = peak_bytes,
) -> list[dict[str, Any]]:
    """The peak of each method beside the model and its input, in MiB and to the reference's."""
    runs: dict[str, Run] = {REFERENCE: partial(forward_and_backward, subject)}
    runs |= {name: run for name, run in ours(subject).items() if name in methods}
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        start = time.perf_counter()
        mebibytes = measure(run, subject.inputs.device) / 2**20
        took = time.perf_counter() - start
        ratio = mebibytes / rows[0]["mebibytes"] if rows else 1.0
        row = {"subject": subject.name, "contender": name, "mebibytes": mebibytes}
        rows.append({**row, "seconds": took, "ratio": ratio})
    return rows
