"""Measures explanations on a GPU or another accelerator, and goes on where it stopped.

python -m benchmarks.accelerator                    # all parts, for at most eight minutes
python -m benchmarks.accelerator                    # the same again: what is left
python -m benchmarks.accelerator --parts long time --models vit_b llama --minutes 20
python -m benchmarks.accelerator --show             # the tables of what has been measured

A unit that is under way is finished; what it found is in `benchmarks/results` at once.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import transformers

from benchmarks.accelerator.measure import WAYS, clean_up
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.units import PARTS, ROOT, SUBJECTS
from benchmarks.device import best_device, device_name


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures until all is measured or the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="no unit starts after them")
    parser.add_argument("--device", type=torch.device, default=best_device())
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    models = ["vit_b", "vit_l", "swin_t", "bert", "gpt2", "llama"]
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=models)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384, 32_768])
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of captured calls"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--monitored", default="vit_small_patch16_224", help="the model in training"
    )
    parser.add_argument("--monitor-batch-size", type=int, default=64)
    parser.add_argument("--monitor-steps", type=int, default=4)
    parser.add_argument("--tests", nargs="*", default=["tests"], help="where the tests are")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--show", action="store_true", help="measure nothing, print what is known")
    options = parser.parse_args(arguments)
    options.monitor = argparse.Namespace(
        model=options.monitored,
        batch_size=options.monitor_batch_size,
        steps=options.monitor_steps,
        epochs=3,
    )

    name = device_name(options.device)
    setting = {
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "timm": timm.__version__,
        "repeats": options.repeats,
    }
    slug = re.sub(r"\W+", "_", name.lower()).strip("_")
    record = Record(options.results / f"accelerator_{slug}.json", setting)
    if not options.show:
        measure(options, record)
    print(f"\n{record.tables()}")


def measure(options: argparse.Namespace, record: Record) -> None:
    """Measures what is not in the record yet."""
    end = time.monotonic() + 60 * options.minutes
    left = 0
    for part in options.parts:
        for unit, run in PARTS[part](options):
            if unit in record:
                continue
            if time.monotonic() >= end:
                left += 1
                continue
            start = time.monotonic()
            try:
                rows = run()
            except Exception as error:
                rows = [{"error": f"{unit}: {type(error).__name__}: {error}"}]
            record.add(unit, rows)
            clean_up()
            print(f"{unit}: {time.monotonic() - start:.1f} s", flush=True)
    if left:
        print(f"{left} units are left; run it again.", flush=True)


if __name__ == "__main__":
    main()
