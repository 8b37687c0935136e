"""Each query attends to the keys with its largest scores, in any notation."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.attr.subjects import METHODS, assert_close, drawn

KEPT, HEADS = 3, 2


def masked(scores: Tensor) -> Tensor:
    least = scores.topk(KEPT, -1).values[..., -1:]
    return scores.masked_fill(scores < least, -math.inf).softmax(-1)


def largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    kept, at = scores.topk(KEPT, -1)
    return kept.softmax(-1), at


def gathered(scores: Tensor) -> Tensor:
    at = scores.topk(KEPT, -1).indices
    return torch.zeros_like(scores).scatter(-1, at, scores.gather(-1, at).softmax(-1))


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "scatter": lambda s: torch.zeros_like(s).scatter(-1, *reversed(largest(s))),
    "scatter_": lambda s: torch.zeros_like(s).scatter_(-1, *reversed(largest(s))),
    "scatter_add": lambda s: torch.zeros_like(s).scatter_add(-1, *reversed(largest(s))),
    "gather": gathered,
    "of scores": lambda s: (
        torch.full_like(s, -math.inf)
        .scatter(-1, s.topk(KEPT, -1).indices, s.topk(KEPT, -1).values)
        .softmax(-1)
    ),
    "turned": lambda s: (
        torch.zeros_like(s.mT).scatter(-2, *(t.mT for t in reversed(largest(s)))).mT
    ),
}


def picked(scores: Tensor, values: Tensor) -> Tensor:
    """Each query has its own keys' values, in each head others."""
    weights, at = largest(scores)
    own = torch.take_along_dim(values.unsqueeze(2), at.unsqueeze(-1), 3)
    return (weights.unsqueeze(-2) @ own).squeeze(-2)


def model(attend: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    q, k, v, out = (drawn(6, 6, seed=seed) for seed in range(4))
    head = drawn(3, 6, seed=4)

    def forward(x: Tensor) -> Tensor:
        parts = (F.linear(x, w).unflatten(-1, (HEADS, -1)).transpose(1, 2) for w in (q, k, v))
        queries, keys, values = parts
        made = attend(queries @ keys.mT, values)
        return F.linear((x + F.linear(made.transpose(1, 2).flatten(2), out))[:, 0], head)

    return forward


@pytest.mark.parametrize("written", SPARSE)
@pytest.mark.parametrize("method", [name for name in METHODS if "from layer 1" not in name])
def test_weights_may_be_written_to_the_places_of_their_keys(method: str, written: str) -> None:
    x = drawn(2, 5, 6, seed=9)
    expected = METHODS[method](model(lambda s, v: masked(s) @ v)).attribute(x, [0, 2])
    explained = METHODS[method](model(lambda s, v: SPARSE[written](s) @ v))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(explained.attribute(x, [0, 2]), expected, 1e-8)


@pytest.mark.parametrize(
    "method",
    ["AttentionRollout", "GenericAttentionRelevance", "RawAttention", "TransformerAttribution"],
)
def test_each_head_may_pick_values_of_its_own(method: str) -> None:
    x = drawn(2, 5, 6, seed=9)
    expected = METHODS[method](model(lambda s, v: masked(s) @ v)).attribute(x, [0, 2])
    assert_close(METHODS[method](model(picked)).attribute(x, [0, 2]), expected, 1e-8)
