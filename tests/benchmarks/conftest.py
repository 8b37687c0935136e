"""Benchmarks are programs for developers: all of their tests are slow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.quick import leave_out

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of benchmarks as slow."""
    leave_out(items, HERE, lambda _: True)


@pytest.fixture(scope="module")
def quick_study() -> Iterator[None]:
    """Few samples for training, and few steps of integration."""
    from benchmarks.study import pictures, texts
    from benchmarks.study.tasks import agreement, lookup, mosaics, similarity

    with pytest.MonkeyPatch.context() as patch:
        for task in (agreement, lookup, mosaics, similarity):
            patch.setattr(task, "TRAINING", 256)
        for module in (pictures, texts):
            patch.setattr(module, "INTEGRATION_STEPS", 3)
        yield
