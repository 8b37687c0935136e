"""Prints the model matrix, and writes it to ``docs/model_matrix.md``.

python -m benchmarks.model_matrix
python -m benchmarks.model_matrix --only Swin GPT --out /tmp/matrix.md
python -m benchmarks.model_matrix --check   # leaves the page, and fails if it has become wrong
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.model_matrix.catalogue import FAMILIES, is_installed
from benchmarks.model_matrix.checks import Row
from benchmarks.model_matrix.page import differences, page
from benchmarks.model_matrix.process import prepare, row_at

DOCS = Path(__file__).parents[2] / "docs" / "model_matrix.md"


def report(row: Row) -> str:
    """One line while the program runs."""
    marks = "".join("-" if v.refused else ("✓" if v.works else "✗") for v in row.verdicts.values())
    return f"{marks} {row.seconds:5.1f} s  {' '.join(row.family)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="families with such a name")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, default=DOCS)
    where.add_argument("--check", action="store_true", help="compare with the page that is there")
    args = parser.parse_args()

    wanted = [
        index
        for index, family in enumerate(FAMILIES)
        if is_installed(family) and (not args.only or any(o in family.name for o in args.only))
    ]
    rows, start = [], time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context, prepare) as pool:
        for row in pool.map(row_at, wanted):
            rows.append(row)
            if not args.check:
                print(report(row), flush=True)
    text = page(rows)
    if not args.check:
        print(f"\n{text}")
        args.out.write_text(text, encoding="utf-8")
    elif wrong := differences(text, DOCS.read_text(encoding="utf-8")):
        sys.exit("\n".join([f"{DOCS.name} does not hold:", *wrong]))
    print(f"{len(rows)} families in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
