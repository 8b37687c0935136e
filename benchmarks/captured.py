"""How long explanations take as they are, captured and compiled, to a plain forward + backward.

All in turns, on one core by default. Run with ``python -m benchmarks.captured``; `--compile` takes
minutes more.
"""

import argparse
import statistics
import time
from collections.abc import Callable
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
MODELS = {
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


def plain(model: nn.Module, x: Tensor, target: Tensor) -> None:
    """Gradient times input, with nothing kept for parameters."""
    x = x.clone().requires_grad_()
    torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["tiny ViT", "ViT-Ti", "Swin-T"])
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'':36} {'nodes':>6} {'capture':>8} {'eager':>6} {'captured':>8} {'compiled':>8}")
    for name in options.models:
        model = MODELS[name]().eval().requires_grad_(requires_grad=False)
        size = timm.data.resolve_model_data_config(model)["input_size"]
        x = torch.randn(options.samples, *size)
        target = torch.arange(options.samples)
        for kind in METHODS:
            method = kind(model)
            start = time.perf_counter()
            captured = method.capture(x, target)
            seconds = time.perf_counter() - start
            if not torch.equal(captured(x, target), method.attribute(x, target)):
                raise SystemExit(f"{name}: {kind.__name__} captured is not what it is uncaptured")
            runs: dict[str, Callable[[], Any]] = {
                "plain": lambda: plain(model, x, target),  # noqa: B023
                "eager": lambda: method.attribute(x, target),  # noqa: B023
                "captured": lambda: captured(x, target),  # noqa: B023
            }
            if options.compile:
                compiled = method.capture(x, target).compile()
                compiled(x, target)
                runs["compiled"] = lambda: compiled(x, target)  # noqa: B023
            ratios = in_turns(runs, options.repeats)
            shown = " ".join(f"{ratio:8.2f}" for ratio in list(ratios.values())[1:])
            print(f"{name + ', ' + kind.__name__:36} {captured.nodes:6} {seconds:7.1f}s {shown}")


if __name__ == "__main__":
    main()
