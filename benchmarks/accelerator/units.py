"""What is measured, in units that take seconds each, the most wanted ones first."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import monitor
from benchmarks.accelerator.measure import captured_contenders, measured
from benchmarks.accelerator.record import Row
from benchmarks.cost.__main__ import LONG, TEXTS
from benchmarks.cost.measurements import SEVERAL_TARGETS, beside_lxt
from benchmarks.cost.subjects import SUBJECTS as COST_SUBJECTS
from benchmarks.cost.subjects import Subject, long_decoder, long_encoder, text_model

ROOT = Path(__file__).parents[2]
Factory = dict[str, Any]
Unit = tuple[str, Callable[[], list[Row]]]


def llama(factory: Factory) -> Subject:
    """A decoder with the sizes of a Llama of 1.3 billion parameters."""
    config = transformers.LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        intermediate_size=5504,
        use_cache=False,
    )
    with factory["device"]:
        model = transformers.LlamaForCausalLM(config)
    return text_model("Llama-like, 1.3B", model, 128, factory, model.model.norm)


SUBJECTS = {**COST_SUBJECTS, "llama": llama}


def tests(options: argparse.Namespace) -> Iterator[Unit]:
    """The tests that are marked gpu, in a process of their own."""

    def run() -> list[Row]:
        start = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        ran = subprocess.run(
            [*command, *options.tests], cwd=ROOT, capture_output=True, text=True, check=False
        )
        lines = ran.stdout.strip().splitlines() or ran.stderr.strip().splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        took = time.perf_counter() - start
        return [{"summary": lines[-1], "failed": "; ".join(failed[:20]), "seconds": took}]

    yield "tests", run


def timings(options: argparse.Namespace) -> Iterator[Unit]:
    """All methods on all models."""
    for setting, subject in _batches(options):

        def run(subject: Any = subject, dtype: str = setting.split("/")[1]) -> list[Row]:
            return measured(subject(), options.repeats, dtype=dtype)

        yield f"time/{setting}", run


def captured(options: argparse.Namespace) -> Iterator[Unit]:
    """Methods as they are, captured, compiled, and with CUDA graphs."""
    ways = [way for way in options.ways if way != "CUDA graphs" or options.device.type == "cuda"]
    for setting, subject in _batches(options):
        for method in SEVERAL_TARGETS:

            def run(
                subject: Any = subject, method: str = method, dtype: str = setting.split("/")[1]
            ) -> list[Row]:
                batch = subject()
                runs = captured_contenders(batch, method, ways)
                return measured(batch, options.repeats, runs=runs, dtype=dtype)

            yield f"captured/{setting}/{method}", run


def _batches(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Subject]]]:
    """Yields the name of each model, dtype and batch size, with a function that builds it."""

    @lru_cache(maxsize=1)
    def subject(name: str, dtype: str) -> Subject:
        return SUBJECTS[name](_factory(options, dtype))

    for dtype in options.dtypes:
        for name in options.models:
            for size in options.batch_sizes:

                def batch(name: str = name, dtype: str = dtype, size: int = size) -> Subject:
                    return subject(name, dtype).with_samples(size)

                yield f"{name}/{dtype}/{size}", batch


def long_texts(options: argparse.Namespace) -> Iterator[Unit]:
    """Methods that never hold a map of all pairs of tokens, on many tokens."""
    for tokens in options.tokens:
        for build in (long_encoder, long_decoder):

            def run(build: Any = build, tokens: int = tokens) -> list[Row]:
                subject = build(tokens, _factory(options, options.dtypes[0]))
                return measured(subject, options.repeats, LONG, dtype=options.dtypes[0])

            yield f"long/{build.__name__}/{tokens}", run


def training(options: argparse.Namespace) -> Iterator[Unit]:
    """What the monitor costs in a training, in training steps."""

    def run() -> list[Row]:
        plain, watched = (
            monitor.train(options.monitor, callbacks)
            for callbacks in ([], [monitor.monitor(captured=False)])
        )
        step = monitor.median(plain.steps)
        cost = monitor.median(watched.validations[1:]) - monitor.median(plain.validations[1:])
        setting = {"subject": options.monitor.model, "batch_size": options.monitor.batch_size}
        return [{**setting, "seconds of a step": step, "seconds": cost, "steps": cost / step}]

    yield "monitor", run


def lxt(options: argparse.Namespace) -> Iterator[Unit]:
    """LXT's AttnLRP and ours; it changes classes of models for good, so it comes last."""
    for name in options.models:
        if name in (*TEXTS, "llama"):

            def run(name: str = name) -> list[Row]:
                subject = SUBJECTS[name](_factory(options, options.dtypes[0]))
                subjects = [subject.with_samples(size) for size in options.batch_sizes]
                rows = beside_lxt(subjects, options.repeats)
                return [{**row, "dtype": options.dtypes[0]} for row in rows]

            yield f"lxt/{name}", run


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Unit]]] = {
    "tests": tests,
    "long": long_texts,
    "monitor": training,
    "time": timings,
    "captured": captured,
    "lxt": lxt,
}


def _factory(options: argparse.Namespace, dtype: str) -> Factory:
    torch.manual_seed(0)
    return {"device": options.device, "dtype": getattr(torch, dtype)}
