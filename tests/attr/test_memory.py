"""What a call has allocated is free as soon as it returns, without the garbage collector."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.attr.subjects import METHODS


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def living_tensors() -> int:
    return sum(type(item) is Tensor for item in gc.get_objects())


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [0, 99], ids=["success", "error"])
def test_nothing_of_the_forward_pass_outlives_the_call(method: str, target: int) -> None:
    model = torch.nn.Sequential(
        torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
        torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 3),
    )
    explain, tokens = METHODS[method](model), torch.randn(2, 4, 8)
    counts = []
    for _ in range(3):
        try:
            explain.attribute(tokens, target)
            explain.attribute_tokens(tokens, target)
        except AssertionError:
            assert target == 99
        counts.append(living_tensors())
    assert counts[1] == counts[2]
