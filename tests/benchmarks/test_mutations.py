"""Whether tests notice a fault is found out by running them."""

import pytest

from benchmarks.mutations import failures, selected

CONTENT = """
import pytest


def test_good():
    assert True


@pytest.mark.slow
def test_bad():
    assert 1 + 1 == 3
"""


@pytest.mark.parametrize(("names", "quick"), [("", False), ("", True), ("good", False)])
def test_tests_are_run_with_any_choice(names, quick, tmp_path):
    (tmp_path / "test_some.py").write_text(CONTENT, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: slow", encoding="utf-8")
    said = failures(tmp_path, selected(["test_some.py"], names, quick), 60.0)
    if names or quick:
        assert said == ""
    else:
        assert "assert (1 + 1) == 3" in said
