"""The changelog, and what a release takes from it."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = """# Changelog

## [Unreleased]

### Added

- New.

## [0.1.0] - 2026-01-02

### Fixed

- Old.
"""


@pytest.fixture
def changelog():
    spec = importlib.util.spec_from_file_location("changelog", ROOT / ".ci" / "changelog.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_unreleased_becomes_a_dated_section(changelog):
    after = changelog.cut(TEXT, "0.2.0", "2026-03-04")
    assert changelog.sections(after) == {
        "Unreleased": (None, ""),
        "0.2.0": ("2026-03-04", "### Added\n\n- New."),
        "0.1.0": ("2026-01-02", "### Fixed\n\n- Old."),
    }
    assert changelog.notes(after, "0.2.0") == "### Added\n\n- New."


def test_a_release_twice_without_news_or_without_a_date_is_refused(changelog):
    with pytest.raises(SystemExit, match="already"):
        changelog.cut(TEXT, "0.1.0", "2026-03-04")
    with pytest.raises(SystemExit, match="Nothing is unreleased"):
        changelog.cut(changelog.cut(TEXT, "0.2.0", "2026-03-04"), "0.3.0", "2026-03-05")
    with pytest.raises(SystemExit, match="no section"):
        changelog.notes(TEXT, "0.2.0")
    with pytest.raises(SystemExit, match="no date"):
        changelog.notes(TEXT.replace(" - 2026-01-02", ""), "0.1.0")


def test_released_sections_are_dated_newest_first(changelog):
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (first, _), *released = changelog.sections(text).items()
    dates = [date for _, (date, _) in released]
    assert first == "Unreleased"
    assert None not in dates
    assert dates == sorted(dates, reverse=True)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(headings) == len(released) + 1


def test_the_versions_that_a_release_writes_are_found(changelog):
    for name, version in changelog.VERSIONS.items():
        assert len(version.findall((ROOT / name).read_text(encoding="utf-8"))) == 1, name
