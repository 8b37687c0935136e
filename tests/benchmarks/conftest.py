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
    from benchmarks.study.tasks import lookup, mosaics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mosaics, "TRAINING", 200)
        patch.setattr(lookup, "TRAINING", 200)
        for module in (pictures, texts):
            patch.setattr(module, "INTEGRATION_STEPS", 3)
        yield
