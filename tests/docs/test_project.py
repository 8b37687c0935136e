"""The project's own files agree with each other."""

import re
from pathlib import Path

from captum_transformer import __version__

ROOT = Path(__file__).parents[2]


def test_the_tested_lower_bounds_are_the_declared_ones():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = project[project.index("\ndependencies = ") : project.index("\ndev = ")]
    declared = set(re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', packages))
    pinned = re.findall(
        r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci/lowest.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(pinned) == len(declared)
    for name, bound in declared:
        assert (name, bound) in pinned or (name, f"{bound}.0") in pinned


def test_the_citation_has_the_version_and_the_papers_of_all_methods():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == __version__
    table = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("## Methods")[1].split("\nCost:")[0]
    )
    papers = re.findall(r"\]\((https://[^)]+)\)", table)
    assert papers
    assert [paper for paper in papers if f"url: {paper}\n" not in citation] == []
