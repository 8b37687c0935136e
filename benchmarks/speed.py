"""Times each method against a plain forward and backward pass of the same model.

All of them run in turns in one process, and a ratio compares two timings of the same turn, so that
whatever else the machine does meanwhile slows down both sides. Printed are medians over the turns.

    python benchmarks/speed.py --model vit_base_patch16_224 --batch-sizes 1 8
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)

REFERENCE = "forward + backward"
METHODS = {
    "TransformerAttribution": TransformerAttribution,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
    "AttentionGradCam": AttentionGradCam,
    "PartialLRP": PartialLRP,
    "Full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "RawAttention": RawAttention,
    "AttentionRollout": AttentionRollout,
}
TARGET = 0


def forward_and_backward(model: nn.Module, images: Tensor) -> Tensor:
    inputs = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs)[:, TARGET].sum(), inputs)
    return gradient


def contenders(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    runs: dict[str, Callable[[], Tensor]] = {
        REFERENCE: partial(forward_and_backward, model, images)
    }
    for name, method in METHODS.items():
        runs[name] = partial(method(model).attribute, images, target=TARGET)
    return runs


def seconds(run: Callable[[], Tensor]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(model: nn.Module, images: Tensor, repeats: int) -> list[dict[str, float | str]]:
    runs = contenders(model, images)
    for run in runs.values():
        run()  # warm up: allocations, kernels' choices, caches
    turns = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    return [
        {
            "method": name,
            "batch_size": len(images),
            "seconds_per_image": statistics.median(turn[name] for turn in turns) / len(images),
            "ratio": statistics.median(turn[name] / turn[REFERENCE] for turn in turns),
        }
        for name in runs
    ]


def table(results: list[dict[str, float | str]], batch_sizes: list[int]) -> str:
    """A Markdown table: one line per method, two columns per batch size."""
    head = [column for b in batch_sizes for column in (f"s/image, batch {b}", "ratio")]
    lines = ["| method | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head)]
    for name in (REFERENCE, *METHODS):
        cells = [
            f"{result['seconds_per_image']:.4f} | {result['ratio']:.2f}"
            for result in results
            if result["method"] == name
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224", help="a model of timm's")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("runs/speed.json"))
    args = parser.parse_args()

    torch.manual_seed(0)
    factory = {"device": torch.device(args.device), "dtype": getattr(torch, args.dtype)}
    model = timm.create_model(args.model).to(**factory).eval()
    size = timm.data.resolve_model_data_config(model)["input_size"]
    results = []
    for batch_size in args.batch_sizes:
        results += measure(model, torch.rand(batch_size, *size, **factory), args.repeats)

    on_cuda = factory["device"].type == "cuda"
    cpu = f"CPU, {torch.get_num_threads()} threads"
    setting = {
        "model": args.model,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name() if on_cuda else cpu,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "repeats": args.repeats,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")
    print(", ".join(f"{name}: {value}" for name, value in setting.items()), end="\n\n")
    print(table(results, args.batch_sizes))


if __name__ == "__main__":
    main()
