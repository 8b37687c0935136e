"""Measures what explanations cost, next to a plain forward and backward pass of the same model.

python -m benchmarks.cost                                  # all of it
python -m benchmarks.cost --parts time --models vit_b --batch-sizes 1 8
python -m benchmarks.cost --parts memory long
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.cost.chart import draw
from benchmarks.cost.clock import Turns, seconds
from benchmarks.cost.contenders import (
    FORWARD,
    INTEGRATED,
    LXT,
    METHODS,
    NOOP,
    REFERENCE,
    TRACED,
    Run,
    forward,
    forward_and_backward,
    forward_under_no_trace,
    forward_under_the_trace,
    integrated_gradients,
    others,
    ours,
    patched_by_lxt,
)
from benchmarks.cost.memory import peaks, resident_peak_bytes
from benchmarks.cost.subjects import SUBJECTS, Subject, large_image, long_decoder, long_encoder
from benchmarks.device import best_device, device_name
from captum_transformer.errors import ExplanationError

ROOT = Path(__file__).parents[2]
TARGETS = 10
SEVERAL_TARGETS = (
    "TransformerAttribution",
    "GenericAttentionRelevance",
    "ConservativeLRP",
    "AttnLRP",
)
EXTREMES = (
    ("weight", 1.0),
    ("weight", 100.0),
    ("qkv.weight", 30.0),
    ("qkv.weight", 1e-3),
    ("attn.proj.weight", 1e-30),
    ("mlp.fc1.weight", 1e-15),
    ("head.weight", 1e-20),
)
# The last-layer methods keep less than rollout does.
LARGE = (*SEVERAL_TARGETS, "Full LRP", "AttentionRollout")
TEXTS = ("bert", "gpt2")
LONG = ("GenericAttentionRelevance", "TransformerAttribution", "ConservativeLRP")

Row = dict[str, Any]


def times(subject: Subject, repeats: int, *, integrate: bool) -> list[Row]:
    """Everything that is timed on a model at one batch size; the ratio is to the reference."""
    runs: dict[str, Run] = {REFERENCE: partial(forward_and_backward, subject)}
    runs |= {FORWARD: partial(forward, subject), TRACED: partial(forward_under_the_trace, subject)}
    runs |= accepted(ours(subject)) | others(subject)
    turns = Turns(runs, repeats)
    setting = {"subject": subject.name, "batch_size": len(subject.inputs)}

    def row(name: str, took: float, ratio: float) -> Row:
        return {**setting, "contender": name, "seconds": took, "ratio": ratio}

    rows = [row(name, turns.median(name), turns.ratio(name, REFERENCE)) for name in runs]
    # Too slow for several turns.
    if integrate:
        took = seconds(integrated_gradients(subject))
        rows.append(row(INTEGRATED, took, took / turns.median(REFERENCE)))
    return rows


def accepted(runs: dict[str, Run]) -> dict[str, Run]:
    """Those that explain the model; of the others it is printed why they refuse it."""
    found = {}
    for name, run in runs.items():
        try:
            run()
        except ExplanationError as reason:
            print(f"{name}: {reason}", flush=True)
        else:
            found[name] = run
    return found


def beside_lxt(subjects: Sequence[Subject], repeats: int) -> list[Row]:
    """LXT's AttnLRP and ours. LXT patches the models' classes, so it comes after all the others."""
    names = ("AttnLRP", "ConservativeLRP")
    unpatched = []
    for subject in subjects:
        runs: dict[str, Run] = {REFERENCE: partial(forward_and_backward, subject)}
        unpatched.append(Turns(runs | {name: ours(subject)[name] for name in names}, repeats))
    rows: list[Row] = []
    for subject, turns in zip(subjects, unpatched, strict=True):
        took = {name: turns.median(name) for name in (REFERENCE, *names)}
        patched = patched_by_lxt(subject)
        if isinstance(patched, str):
            print(f"LXT on {subject.name}: {patched}", flush=True)
        else:
            took[LXT] = Turns({LXT: patched}, repeats).median(LXT)
        setting = {"subject": subject.name, "batch_size": len(subject.inputs)}
        rows += [
            {**setting, "contender": name, "seconds": t, "ratio": t / took[REFERENCE]}
            for name, t in took.items()
        ]
    return rows


def overheads(subject: Subject, repeats: int) -> Row:
    """A forward pass under the trace, and under a mode that does nothing, to one without."""
    runs: dict[str, Run] = {
        FORWARD: partial(forward, subject),
        NOOP: partial(forward_under_no_trace, subject),
        TRACED: partial(forward_under_the_trace, subject),
    }
    turns = Turns(runs, repeats)
    return {
        "subject": subject.name,
        "batch_size": len(subject.inputs),
        "forward": turns.median(FORWARD),
        "noop": turns.ratio(NOOP, FORWARD),
        "ratio": turns.ratio(TRACED, FORWARD),
    }


def several_targets(subject: Subject, repeats: int) -> list[Row]:
    """``attribute_targets`` of ten classes, to a forward and ten times the backward part."""
    rows = []
    for name in SEVERAL_TARGETS:
        method = METHODS[name](subject.model)
        several = partial(method.attribute_targets, subject.inputs, list(range(TARGETS)))
        turns = Turns(
            {
                FORWARD: partial(forward, subject),
                "one": partial(method.attribute, subject.inputs, target=0),
                "several": several,
            },
            repeats,
        )
        ratio = turns.to_several("several", "one", FORWARD, TARGETS)
        rows.append({"subject": subject.name, "contender": name, "ratio": ratio})
    return rows


def extremes(subject: Subject, repeats: int) -> list[Row]:
    """TransformerAttribution where weights drive relevance towards the smallest numbers there are.

    Products of such numbers are slow on CPUs.
    """
    rows = []
    for part, factor in EXTREMES:
        kept = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
        with torch.no_grad():
            for name, parameter in subject.model.named_parameters():
                if part in name:
                    parameter.mul_(factor)
        method = METHODS["TransformerAttribution"](subject.model)
        runs: dict[str, Run] = {
            REFERENCE: partial(forward_and_backward, subject),
            "ours": partial(method.attribute, subject.inputs, target=subject.target),
        }
        ratio = Turns(runs, repeats).ratio("ours", REFERENCE)
        rows.append({"subject": subject.name, "weights": part, "factor": factor, "ratio": ratio})
        subject.model.load_state_dict(kept, strict=False)
    return rows


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
