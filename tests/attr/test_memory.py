"""Memory of a call is freed when it returns, without the garbage collector."""

import gc
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.cost.memory import STATUS, peak_bytes, resident_peak_bytes
from benchmarks.cost.subjects import long_encoder
from captum_transformer import TransformerAttribution
from tests.attr.subjects import METHODS


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    gc.freeze()  # what other tests keep is not looked through again and again
    try:
        yield
    finally:
        gc.enable()


def living_tensors() -> int:
    return sum(type(item) is Tensor for item in gc.get_objects())


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("target", [0, 99], ids=["success", "error"])
def test_nothing_of_the_forward_pass_outlives_the_call(checkpoint: bool, target: int) -> None:
    model = torch.nn.Sequential(
        torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
        torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 3),
    )
    tokens, counts = torch.randn(2, 4, 8), {}
    for name, method in METHODS.items():
        explain = method(model, checkpoint=checkpoint)
        counts[name] = []
        for _ in range(3):
            try:
                explain.attribute(tokens, target)
                explain.attribute_tokens(tokens, target)
            except AssertionError:
                assert target == 99
            counts[name].append(living_tensors())
    assert all(second == third for _, second, third in counts.values()), counts


def test_gradients_of_attention_are_not_kept_while_relevance_is_propagated() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 2, 128, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
    model = torch.nn.Sequential(encoder, torch.nn.Flatten(), torch.nn.Linear(32 * 128, 3))
    tokens = torch.randn(4, 128, 32)

    def peak(*, weighted: bool) -> int:
        explain = TransformerAttribution(model, gradient_weighting=weighted)
        return peak_bytes(partial(explain.attribute, tokens, 0), tokens.device)

    peak(weighted=True)
    gradient = tokens.numel() * tokens.element_size()
    assert peak(weighted=True) < peak(weighted=False) + 4 * gradient


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own record")
@pytest.mark.parametrize("method", ["TransformerAttribution", "ConservativeLRP"])
def test_hundreds_of_calls_leave_no_growth(method: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(16 * 16, 3))
    explain, tokens = METHODS[method](model), torch.randn(4, 16, 16)
    for _ in range(100):
        explain.attribute(tokens, 0)
    gc.collect()
    objects, memory = len(gc.get_objects()), resident_bytes()
    for _ in range(400):
        explain.attribute(tokens, 0)
    gc.collect()
    assert len(gc.get_objects()) - objects < 100
    # Less than four kilobytes a call, as the smallest of its tensors have.
    assert resident_bytes() - memory < 1.5 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's own record")
@pytest.mark.parametrize("method", ["AttentionRollout", "TransformerAttribution"])
def test_long_inputs_do_not_break_up_the_memory(method: str) -> None:
    """Small tensors that stay between blocks of maps keep the allocator from using these again."""
    torch.manual_seed(0)
    subject = long_encoder(8_192, {"device": torch.device("cpu"), "dtype": torch.float32})
    explain = partial(METHODS[method](subject.model).attribute, subject.inputs, 0)
    # The maps of both heads of one layer would take 512 MiB. What other tests have left behind in
    # this process may break up the memory once.
    assert any(resident_peak_bytes(explain, subject.inputs.device) < 400 * 2**20 for _ in range(3))
