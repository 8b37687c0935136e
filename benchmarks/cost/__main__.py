"""Measures what explanations cost, next to a plain forward and backward pass of the same model.

python -m benchmarks.cost                                  # all of it
python -m benchmarks.cost --parts time --models vit_b --batch-sizes 1 8
python -m benchmarks.cost --parts memory long
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.cost.chart import draw
from benchmarks.cost.contenders import FORWARD, REFERENCE, TRACED
from benchmarks.cost.measurements import (
    SEVERAL_TARGETS,
    Row,
    beside_lxt,
    extremes,
    overheads,
    several_targets,
    times,
)
from benchmarks.cost.memory import peaks, resident_peak_bytes
from benchmarks.cost.subjects import SUBJECTS, large_image, long_decoder, long_encoder
from benchmarks.device import best_device, device_name

ROOT = Path(__file__).parents[2]
# The last-layer methods keep less than rollout does.
LARGE = (*SEVERAL_TARGETS, "Full LRP", "AttentionRollout")
TEXTS = ("bert", "gpt2")
LONG = ("GenericAttentionRelevance", "TransformerAttribution", "ConservativeLRP")


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--models",
        nargs="+",
        choices=SUBJECTS,
        default=["vit_b", "vit_l", "bert", "gpt2", "swin_t"],
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 720, 1024])
    parser.add_argument("--encoder-tokens", type=int, default=16_384)
    parser.add_argument("--decoder-tokens", type=int, default=32_768)
    parser.add_argument("--device", default=str(best_device()))
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()

    torch.manual_seed(0)
    factory = {"device": torch.device(args.device), "dtype": getattr(torch, args.dtype)}
    setting = {
        "device": device_name(factory["device"]),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "dtype": args.dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "repeats": args.repeats,
    }
    print(", ".join(f"{name}: {value}" for name, value in setting.items()), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        out = args.results / f"{part}_{factory['device'].type}_{args.dtype}.json"
        measured = PARTS[part](args, factory)
        if not measured:
            continue
        rows = _beside(out, setting, measured)
        print(f"\n{part}\n\n{table(rows)}", flush=True)
        out.write_text(
            json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n", encoding="utf-8"
        )
        if part == "time":
            where = "{device}, {threads} threads, {dtype}, torch {torch}".format(**setting)
            shown = [row for row in rows if row["contender"] not in (REFERENCE, FORWARD, TRACED)]
            draw(shown, where, out.with_suffix(".png"))


def _beside(out: Path, setting: Row, rows: list[Row]) -> list[Row]:
    """Rows beside those of other models and batches that were measured in the same setting."""
    if not out.exists():
        return rows

    def measured(row: Row) -> tuple[Any, Any]:
        return row["subject"], row.get("batch_size")

    earlier, anew = json.loads(out.read_text(encoding="utf-8")), {measured(row) for row in rows}
    same = earlier["setting"] == setting
    kept = [row for row in earlier["rows"] if same and measured(row) not in anew]
    return sorted(kept + rows, key=lambda row: str(measured(row)))


def _time(args: argparse.Namespace, factory: dict[str, Any]) -> list[Row]:
    rows = []
    for name in args.models:
        subject = SUBJECTS[name](factory)
        for number, size in enumerate(args.batch_sizes):
            print(f"{subject.name}, batch of {size}", flush=True)
            batch = subject.with_samples(size)
            rows += times(batch, args.repeats, integrate=number == 0)
    return rows


def _overhead(args: argparse.Namespace, factory: dict[str, Any]) -> list[Row]:
    names = ("test_vit", "vit_ti", "vit_b")
    return [overheads(SUBJECTS[name](factory), 4 * args.repeats) for name in names]


def _targets(args: argparse.Namespace, factory: dict[str, Any]) -> list[Row]:
    return several_targets(SUBJECTS[args.models[0]](factory), args.repeats)


def _extremes(args: argparse.Namespace, factory: dict[str, Any]) -> list[Row]:
    return extremes(SUBJECTS[args.models[0]](factory), max(1, args.repeats // 2))


def _memory(args: argparse.Namespace, factory: dict[str, Any]) -> list[Row]:
    return [row for side in args.sides for row in peaks(large_image(side, factory), LARGE)]


def _long(args: argparse.Namespace, factory: dict[str, Any]) -> list[Row]:
    rows = []
    for build, tokens in (
        (long_encoder, args.encoder_tokens),
        (long_decoder, args.decoder_tokens),
    ):
        subject = build(tokens, factory)
        print(subject.name, flush=True)
        rows += peaks(subject, LONG, resident_peak_bytes)
    return rows


def _lxt(args: argparse.Namespace, factory: dict[str, Any]) -> list[Row]:
    texts = [SUBJECTS[name](factory) for name in args.models if name in TEXTS]
    subjects = [subject.with_samples(size) for subject in texts for size in args.batch_sizes]
    return beside_lxt(subjects, args.repeats)


PARTS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], list[Row]]] = {
    "time": _time,
    "overhead": _overhead,
    "targets": _targets,
    "extremes": _extremes,
    "memory": _memory,
    "long": _long,
    "lxt": _lxt,
}


if __name__ == "__main__":
    main()
