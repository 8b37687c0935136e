"""The programs that measure are the developers', and are tested in the run of everything."""

from pathlib import Path

import pytest

from tests.quick import leave_out

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of benchmarks are slow."""
    leave_out(items, HERE, lambda _: True)
