"""The project's own files agree with each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_dead_link_of_the_site_and_a_site_that_is_not_there_are_errors(tmp_path):
    def check():
        command = [sys.executable, ROOT / "docs" / "check_links.py", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert check() == (1, f"{tmp_path} has no index.html: build the site there first.\n")
    page = tmp_path / "index.html"
    page.write_text('<p id="here"><a href="#here">a</a> <a href="#there">b</a>', encoding="utf-8")
    assert check() == (1, "index.html: #there\n")
    page.write_text('<p id="here"><a href="#here">a</a>', encoding="utf-8")
    assert check()[0] == 0


PACKAGES = ("captum_transformer", "lightning_callbacks")
PAGES = ["CONTRIBUTING.md", "docs/architecture.md", "docs/images/walk.svg", "docs/releasing.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_for_developers_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])\.?[\w/]+\.(?:py|yml|txt)\b", text))
    named |= set(re.findall(r"`((?:tests|benchmarks|rules|lightning_callbacks)/[\w/]+)`", text))
    known = [
        path.relative_to(ROOT).as_posix()
        for folder in (*PACKAGES, "tests", "benchmarks", "docs", "tutorials")
        for path in (ROOT / folder, *(ROOT / folder).rglob("*"))
    ]
    known += [path.name for path in ROOT.iterdir()]
    known += [f"{path.parent.name}/{path.name}" for path in (ROOT / ".ci").iterdir()]
    known += [path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*")]
    assert named
    missing = [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in known)]
    assert not missing, missing
