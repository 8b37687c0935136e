"""The project's own files agree with each other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tested_lower_bounds_are_the_declared_ones():
    project = (ROOT / "pyproject.toml").read_text()
    packages = project[project.index("\ndependencies = ") : project.index("\ndev = ")]
    declared = re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', packages)
    pinned = re.findall(
        r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci/lowest.txt").read_text(), re.MULTILINE
    )
    assert len(pinned) == len(declared)
    for name, bound in declared:
        assert (name, bound) in pinned or (name, f"{bound}.0") in pinned
