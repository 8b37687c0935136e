"""Relevance through a fused attention call is that through its products, softmax and mask."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.calling import Arguments
from captum_transformer.rules.propagate import propagate
from captum_transformer.rules.relevance import TABLE
from captum_transformer.trace import blocks, traced_forward

BATCH, HEADS, QUERIES, KEYS, WIDTH = 3, 2, 4, 5, 6


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.mT * WIDTH**-0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.fixture
def operands() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    queries = torch.randn(BATCH, HEADS, QUERIES, WIDTH, dtype=torch.float64)
    keys, values = torch.randn(2, BATCH, HEADS, KEYS, WIDTH, dtype=torch.float64)
    return queries, keys, values


def propagated(function, inputs: tuple[Tensor, ...], relevance: Tensor) -> list[Tensor]:
    with traced_forward(function, Arguments(inputs), keep=TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        result = propagate(forward.tape, {value: relevance}, TABLE, forward.values)
        return [result[v] for v in forward.values]


def compare(call, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    relevance = torch.randn(BATCH, HEADS, QUERIES, WIDTH, dtype=torch.float64)
    expected = propagated(lambda *given: call(written_out, *given), inputs, relevance)
    results = propagated(lambda *given: call(fused, *given), inputs, relevance)
    for result, of_products in zip(results, expected, strict=True):
        torch.testing.assert_close(result, of_products, rtol=1e-6, atol=1e-9)
        assert result.any()
    return results


@pytest.fixture(params=[1 << 26, 1], ids=["whole", "row by row"], autouse=True)
def _blocks(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", {"cpu": request.param})
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)


def test_queries_keys_and_values(operands):
    compare(lambda attend, q, k, v: attend(q, k, v), operands)


def test_constant_queries_are_weights(operands):
    """As the learned queries of a detector: the keys' relevance is that through a linear map."""
    queries, keys, values = operands
    compare(lambda attend, k, v: attend(queries, k, v), (keys, values))


def test_constant_keys_are_weights(operands):
    queries, keys, values = operands
    compare(lambda attend, q, v: attend(q, keys, v), (queries, values))


@pytest.mark.parametrize("shape", [(BATCH, 1, 1, KEYS), (BATCH, HEADS, QUERIES, KEYS)], ids=str)
def test_a_mask_that_is_made_from_an_input_gets_its_share(shape, operands):
    mask = torch.randn(*shape, dtype=torch.float64)
    *_, onto_mask = compare(lambda attend, q, k, v, m: attend(q, k, v, m), (*operands, mask))
    assert onto_mask.shape == shape


def test_a_constant_mask_closes_keys(operands):
    torch.manual_seed(2)
    mask = torch.randn(QUERIES, KEYS, dtype=torch.float64)
    mask[:, 3] = -torch.inf
    _, keys, values = compare(lambda attend, q, k, v: attend(q, k, v, mask), operands)
    assert not keys[:, :, 3].any()
    assert not values[:, :, 3].any()
