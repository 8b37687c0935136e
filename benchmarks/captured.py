"""How long explanations take as they are, captured and compiled, to a plain forward + backward.

    python -m benchmarks.captured

All in turns, timed on one core. Models that are in the results are left out, so that a run which
was stopped goes on; `--again` measures all.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)

METHODS = (ConservativeLRP, AttnLRP, GenericAttentionRelevance, TransformerAttribution)
RESULTS = Path(__file__).parent / "results" / "captured_cpu_float32.json"
MODELS: dict[str, Callable[[], nn.Module]] = {
    "tiny ViT": lambda: timm.create_model("test_vit", img_size=160, num_classes=10),
    "ViT-Ti": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10),
    "Swin-T": lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=10),
    "ViT-B": lambda: timm.create_model("vit_base_patch16_224", num_classes=10),
}


def in_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median, over the turns, of how many times as long each takes as the first."""
    turns = []
    for turn in range(repeats + 2):
        taken = {}
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name] = time.perf_counter() - start
        if turn > 1:
            turns.append(taken)
    first = next(iter(runs))
    return {name: statistics.median(turn[name] / turn[first] for turn in turns) for name in runs}


def plain(model: nn.Module, x: Tensor, target: list[int]) -> None:
    """Gradient times input, with nothing kept for parameters."""
    x = x.clone().requires_grad_()
    torch.autograd.grad(model(x)[range(len(x)), target].sum(), x)


def explained(name: str, samples: int) -> tuple[nn.Module, Tensor, list[int]]:
    """A model, images for it, and a target for each of them, even if there is only one."""
    model = MODELS[name]().eval().requires_grad_(requires_grad=False)
    size = timm.data.resolve_model_data_config(model)["input_size"]
    return model, torch.randn(samples, *size), list(range(samples))


def measured(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each method that explains a model."""
    model, x, target = explained(name, options.samples)
    rows = []
    for kind in METHODS:
        method = kind(model)
        start = time.perf_counter()
        captured = method.capture(x, target)
        row: dict[str, Any] = {
            "subject": name,
            "contender": kind.__name__,
            "nodes": captured.nodes,
            "capture": time.perf_counter() - start,
            "compile": None,
            "compiled": None,
        }
        if not torch.equal(captured(x, target), method.attribute(x, target)):
            raise SystemExit(f"{name}: {kind.__name__} captured is not what it is uncaptured")
        runs: dict[str, Callable[[], Any]] = {
            "plain": lambda: plain(model, x, target),
            "eager": lambda method=method: method.attribute(x, target),
            "captured": lambda captured=captured: captured(x, target),
        }
        if kind.__name__ in options.compile:
            compiled = method.capture(x, target)
            compiled.compile()(x, target)
            row["compile"] = first_compiled(name, kind.__name__, options)
            runs["compiled"] = lambda compiled=compiled: compiled(x, target)
        ratios = in_turns(runs, options.repeats)
        rows.append(row | {run: ratios[run] for run in runs if run != "plain"})
        print(", ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def first_compiled(name: str, method: str, options: argparse.Namespace) -> float:
    """The seconds to compile in a new process, which finds nothing that was compiled before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds: float = pool.apply(seconds_to_compile, (name, method, options))
    return seconds


def seconds_to_compile(name: str, method: str, options: argparse.Namespace) -> float:
    torch.set_num_threads(options.threads)
    model, x, target = explained(name, options.samples)
    (kind,) = (kind for kind in METHODS if kind.__name__ == method)
    captured = kind(model).capture(x, target)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        start = time.perf_counter()
        captured.compile()(x, target)
        return time.perf_counter() - start


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile",
        nargs="*",
        default=["TransformerAttribution"],
        choices=[kind.__name__ for kind in METHODS],
        help="the methods that are compiled as well, which takes a minute or two for each model",
    )
    parser.add_argument("--again", action="store_true", help="measure what has been measured")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    setting = {
        "threads": options.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "samples": options.samples,
    }
    rows: list[dict[str, Any]] = []
    if options.results.exists() and not options.again:
        found = json.loads(options.results.read_text(encoding="utf-8"))
        if found["setting"] != setting:
            raise SystemExit(f"{options.results} is of another setting: --again measures anew")
        rows = found["rows"]
    for name in options.models:
        if not any(row["subject"] == name for row in rows):
            rows += measured(name, options)
            text = json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n"
            options.results.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
