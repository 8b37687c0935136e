"""Benchmarks are programs for developers: all of their tests are slow."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.quick import leave_out

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of benchmarks as slow."""
    leave_out(items, HERE, lambda _: True)


def shallow(make: Callable[..., Any], layers: str) -> Callable[..., Any]:
    """Makes what `make` makes, with two layers."""
    return lambda **sizes: make(**sizes | {layers: 2})


@pytest.fixture(scope="module")
def quick_study() -> Iterator[None]:
    """Few samples for training, few steps of integration, two layers, and small pictures."""
    from benchmarks.study import models, pictures, plots, texts
    from benchmarks.study.tasks import agreement, lookup, mosaics, readouts, similarity

    with pytest.MonkeyPatch.context() as patch:
        for task in (agreement, lookup, mosaics, similarity):
            patch.setattr(task, "TRAINING", 256)
        for module in (pictures, texts):
            patch.setattr(module, "INTEGRATION_STEPS", 3)
        for module, name, layers in (
            (models, "VisionTransformer", "depth"),
            (readouts, "VisionTransformer", "depth"),
            (models, "BertConfig", "num_hidden_layers"),
            (models, "LlamaConfig", "num_hidden_layers"),
        ):
            patch.setattr(module, name, shallow(getattr(module, name), layers))
        patch.setattr(plots, "DPI", 40)
        yield
