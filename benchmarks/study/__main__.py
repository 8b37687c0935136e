"""Studies how faithful the methods are, on models that it trains itself.

python -m benchmarks.study --data FOLDER --out FOLDER
"""

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import page
from benchmarks.study.given import subject_of
from benchmarks.study.plots import draw_all
from benchmarks.study.store import Store
from benchmarks.study.subject import Subject, joined, study
from benchmarks.study.tables import Record, markdown, record
from benchmarks.study.tasks import (
    agreement,
    clothing,
    last_token,
    lookup,
    molecules,
    mosaics,
    patching,
    readouts,
    reviews,
    sentiment,
    similarity,
    vision,
)

TASKS: dict[str, Any] = {
    task.NAME: task
    for task in (
        vision,
        mosaics,
        *readouts.TASKS,
        clothing,
        sentiment,
        last_token,
        reviews,
        molecules,
        lookup,
        agreement,
        patching,
        similarity,
    )
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    parser.add_argument("--out", type=Path, required=True, help="where models and results are kept")
    parser.add_argument("--only", nargs="+", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--samples", type=int, help="of each model; each has its own by default")
    parser.add_argument("--seeds", type=int, help="how many models of each task: three by default")
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="NAME",
        help="study these instead: models of timm with pictures in FOLDER/imagenet/CLASS, or text "
        "classifiers of Transformers (a name or a folder) with FOLDER/SST-2/dev.tsv",
    )
    parser.add_argument("--epochs", type=int, help="of each training; each has its own by default")
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--publish", action="store_true", help="also fill in docs/study.md")
    args = parser.parse_args(arguments)
    if args.samples is not None and args.samples < 2:
        parser.error(f"--samples must be at least 2, got {args.samples}.")
    if args.seeds is not None and args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}.")
    if args.publish and (args.model or args.samples or args.epochs):
        parser.error("--publish needs the tasks with their own numbers of samples and epochs.")

    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    store = Store(args.out)
    records = []
    for name in [] if args.model else args.only or TASKS:
        task = TASKS[name]
        samples, models = args.samples or task.SAMPLES, args.out / "models"
        seeds = min(task.SEEDS, args.seeds or task.SEEDS)
        subjects = (
            task.subject(args.data, models, samples, args.epochs, seed) for seed in range(seeds)
        )
        records.append(finished(subjects, store))
    for name in args.model:
        subject = subject_of(name, args.data, args.samples or 200)
        records.append(finished([subject], store))
    (args.out / "study.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (args.out / "study.md").write_text("\n\n".join(map(markdown, records)) + "\n", encoding="utf-8")
    figures = draw_all(records, args.out)
    print(f"{args.out / 'study.md'}, after {time.perf_counter() - start:.0f} s")
    if args.publish:
        page.publish(records, figures)


def finished(subjects: Iterable[Subject], store: Store) -> Record:
    """Studies the models of a task, prints and returns what came out."""
    found = record(joined([study(subject, store) for subject in subjects]))
    print(f"\n{markdown(found)}", flush=True)
    return found


if __name__ == "__main__":
    main()
