"""Which of torch's operators a quick run asks."""

from pathlib import Path

import pytest

from benchmarks.operators.database import OPERATORS

HERE = Path(__file__).parent
QUICK = frozenset(list(OPERATORS)[::10])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of every operator ask a tenth of them; the rest is for the run of everything."""
    for item in items:
        name = getattr(getattr(item, "callspec", None), "params", {}).get("name")
        if item.path.is_relative_to(HERE) and name in OPERATORS and name not in QUICK:
            item.add_marker(pytest.mark.slow)
