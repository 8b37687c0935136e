"""Prints how much of the code the tests have run, and fails if it is less than it was.

python .ci/coverage.py merged.json   # of slipcover
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

# In percent, about a point below what was last measured: raise them when coverage has risen.
FLOOR = {"lines": 96.5, "branches": 91.5}


def counted(files: dict[str, Any]) -> dict[str, Counter[str]]:
    """What was run and what was missed, for each folder of a package."""
    folders: dict[str, Counter[str]] = {}
    for name, found in files.items():
        counts = Counter(
            {
                f"{how} {what}": len(found[f"{how}_{what}"])
                for what in FLOOR
                for how in ("executed", "missing")
            }
        )
        folders.setdefault("/".join(Path(name).parts[:2]), Counter()).update(counts)
    return folders


def percent(counts: Counter[str], what: str) -> float:
    """The share that was run; all of nothing."""
    run, missed = counts[f"executed {what}"], counts[f"missing {what}"]
    return 100 * run / (run + missed) if run + missed else 100.0


def main() -> None:
    files = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["files"]
    folders = counted(files)
    total = sum(folders.values(), Counter[str]())
    for name, counts in [*sorted(folders.items()), ("all", total)]:
        shares = "  ".join(f"{percent(counts, what):5.1f} % of {what}" for what in FLOOR)
        print(f"{name:52} {shares}")
    low = [what for what in FLOOR if percent(total, what) < FLOOR[what]]
    if low:
        sys.exit(f"Of {' and '.join(low)}, fewer are covered than {FLOOR}: test what is new.")


if __name__ == "__main__":
    main()
