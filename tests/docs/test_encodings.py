"""Texts are read and written in UTF-8 everywhere, also where a system's own encoding is another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# How many arguments stand before the encoding.
BEFORE = {"read_text": 0, "write_text": 1}


def says_no_encoding(call):
    """Whether a call reads or writes a whole file in the system's encoding."""
    name = getattr(call.func, "attr", None)
    named = {keyword.arg for keyword in call.keywords}
    return name in BEFORE and len(call.args) <= BEFORE[name] and "encoding" not in named


@pytest.mark.parametrize(
    "folder",
    [
        ".ci",
        "benchmarks",
        "captum_transformer",
        "docs",
        "lightning_callbacks",
        "tests",
        "tutorials",
    ],
)
def test_texts_have_an_encoding(folder):
    without = [
        f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and says_no_encoding(node)
    ]
    assert not without, f'{without}: pass encoding="utf-8"'
