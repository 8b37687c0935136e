"""Leaves cases of parametrised tests to the slow run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


def leave_out(
    items: list[pytest.Item], folder: Path, is_left_out: Callable[[Mapping[str, Any]], bool]
) -> None:
    """Marks as slow the tests of a folder whose parameters say so."""
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.is_relative_to(folder) and is_left_out(given):
            item.add_marker(pytest.mark.slow)
