"""The examples of the documentation run."""

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    page for page in DOCS.glob("*.md") if "```python" in page.read_text(encoding="utf-8")
)

LONG = {"captured", "similarity", "visualization"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.stem in LONG else ())
        for page in PAGES
    ],
)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # the weights of most models there are random
    namespace: dict[str, Any] = {}
    for block in re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        exec(compile(block, page.name, "exec"), namespace)
    plt.close("all")


def test_pages_with_examples_are_found():
    assert "cross_attention" in [page.stem for page in PAGES]


def test_no_line_of_a_page_is_a_comment_by_chance():
    """MyST takes a line that begins with a percent sign for a comment, and leaves it out."""
    pages = [page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")]
    lines = [line for page in pages for line in page.splitlines()]
    assert [line for line in lines if line.lstrip().startswith("%")] == []
