"""Runs torch's own operators under the trace, and writes `docs/operators.md`.

python -m benchmarks.operators
python -m benchmarks.operators --only softmax add     # prints what is wrong with these
python -m benchmarks.operators --check                # fails if the page has become wrong
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

from benchmarks.operators.database import OPERATORS
from benchmarks.operators.page import differences, page
from benchmarks.operators.verdicts import verdicts

DOCS = Path(__file__).parents[2] / "docs" / "operators.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="just these operators")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, default=DOCS)
    where.add_argument("--check", action="store_true", help="compare with the page that is there")
    args = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's own, of rare arguments
    start = time.perf_counter()
    rows = {name: verdicts(name) for name in args.only or OPERATORS}
    text = page(rows)
    if args.only:
        for name, row in rows.items():
            print(*(f"{name}, {what}: {found}" for what, found in row.items()), sep="\n")
    elif not args.check:
        args.out.write_text(text, encoding="utf-8")
        print(text[text.index("| operators") : text.index("\n## Operator by operator")])
    elif wrong := differences(text, DOCS.read_text(encoding="utf-8")):
        sys.exit("\n".join([f"{DOCS.name} does not hold:", *wrong]))
    print(f"{len(rows)} operators in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
