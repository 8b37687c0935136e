"""Fixtures for the tests of the methods, and which methods a quick run asks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attr.subjects import EACH_WAY, METHODS
from tests.quick import leave_out

HERE = Path(__file__).parent
VARIANTS = METHODS.keys() - set(EACH_WAY)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of every method leave the variants to the run of everything."""
    variants = [METHODS[name] for name in VARIANTS]

    def is_variant(given: Mapping[str, Any]) -> bool:
        method = given.get("method")
        return method in VARIANTS if isinstance(method, str) else method in variants

    leave_out(items, HERE, is_variant)


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tiny models are several times slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.default_generator.manual_seed(0)
