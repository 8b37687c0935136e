"""The dimensions of results come from those of the operands, as derivatives show."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import TransformerAttribution
from captum_transformer.trace.dimensions import passage
from captum_transformer.trace.mode import Trace
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import drawn

INDEX = torch.tensor([1, 0, 2])
GRID = torch.rand(2, 3, 3, 2)
QUERY = torch.randn(2, 4, 4, 5)
# What is called, and the dimensions of four (all of length 4 but the first and last) that it mixes.
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], set[int]]] = {
    "exp": (torch.exp, set()),
    "add": (lambda x: x + torch.ones(3, 2, 4, 4, 5), set()),
    "sum": (lambda x: x.sum(1), {1}),
    "mean of two": (lambda x: x.mean((1, -1)), {1, 3}),
    "kept": (lambda x: x.amax(2, keepdim=True), {2}),
    "all": (lambda x: x.sum(), {0, 1, 2, 3}),
    "var": (lambda x: x.var(2), {2}),
    "norm": (lambda x: x.norm(dim=1), {1}),
    "median": (lambda x: x.median(1)[0], {1}),
    "topk": (lambda x: x.topk(2)[0], {3}),
    "sort": (lambda x: x.sort(1)[0], {1}),
    "softmax": (lambda x: x.softmax(1), {1}),
    "logsumexp": (lambda x: x.logsumexp(-2), {2}),
    "cumsum": (lambda x: x.cumsum(1), {1}),
    "layer norm": (lambda x: F.layer_norm(x, (4, 5)), {2, 3}),
    "group norm": (lambda x: F.group_norm(x, 2), {1, 2, 3}),
    "instance norm": (F.instance_norm, {2, 3}),
    "batch norm": (lambda x: F.batch_norm(x, None, None, training=True), {0, 2, 3}),
    "running statistics": (lambda x: F.batch_norm(x, torch.ones(4), torch.ones(4)), set()),
    "linear": (lambda x: F.linear(x, torch.randn(6, 5)), {3}),
    "matmul": (lambda x: torch.randn(6, 4) @ x, {2}),
    "einsum": (lambda x: torch.einsum("abcd,cb->dab", x, torch.ones(4, 4)), {2}),
    "convolution": (lambda x: F.conv2d(x, torch.randn(4, 4, 3, 3), padding=1), {1, 2, 3}),
    "convolution of one": (lambda x: F.conv2d(x, torch.randn(4, 4, 1, 1)), {1}),
    "strided": (lambda x: F.conv2d(x, torch.randn(4, 4, 1, 1), stride=2), {1, 2, 3}),
    "query": (lambda x: F.scaled_dot_product_attention(x, QUERY, QUERY), {3}),
    "key": (lambda x: F.scaled_dot_product_attention(QUERY, x, QUERY), {2, 3}),
    "value": (lambda x: F.scaled_dot_product_attention(QUERY, QUERY, x), {2}),
    "stack": (lambda x: torch.stack([x, x], 2), set()),
    "concatenation": (lambda x: torch.cat([x, x], 2), {2}),
    "padding": (lambda x: F.pad(x, (0, 0, 1, 1)), {2}),
    "brackets": (lambda x: x[:, :, INDEX], {2}),
    "brackets in front": (lambda x: x[:, INDEX, :, INDEX], {1, 3}),
    "gather": (lambda x: x.gather(1, torch.zeros(2, 4, 4, 5, dtype=torch.long)), {1}),
    "index_select": (lambda x: x.index_select(2, INDEX), {2}),
    "roll": (lambda x: x.roll((1, 2), (1, 2)), {1, 2}),
    "flip": (lambda x: x.flip(1, 2), {1, 2}),
    "where": (lambda x: torch.where(torch.ones(3, 1, 1, 4, 1) > 0, x, 0.0), set()),
    "tril": (torch.tril, set()),
    "rotation": (lambda x: x.rot90(1, (1, 2)), {0, 1, 2, 3}),
    "pooling": (lambda x: F.avg_pool2d(x, 2), {2, 3}),
    "distances": (lambda x: torch.cdist(x, torch.randn(2, 4, 6, 5)), {3}),
    "distances of columns": (lambda x: torch.cdist(torch.randn(2, 4, 6, 5), x), {3}),
    "sampling": (
        lambda x: F.grid_sample(x, torch.rand(2, 3, 3, 2), align_corners=False),
        {1, 2, 3},
    ),
    "spectrum": (lambda x: torch.fft.rfft(x, dim=1).abs(), {1}),
}


def called(function: Callable[[Tensor], Any], x: Tensor) -> tuple[Any, Any, Tensor]:
    """The operation that a function ends in, its operand, and the result."""
    with Trace() as trace:
        entered = x.clone()
        value = trace.enter_input(entered)
        function(entered)
    operation = next(o for o in trace.tape.operations if any(v is value for _, v in o.traced()))
    operand = next(o for o, v in operation.traced() if v is value)
    return operation, operand, operation.replay([x] * len(operation.traced()))[0]


@pytest.mark.parametrize("name", CALLS)
def test_entries_are_made_of_those_at_their_own_place(name: str) -> None:
    function, mixed = CALLS[name]
    x = torch.randn(2, 4, 4, 5, requires_grad=True)
    operation, operand, result = called(function, x)
    found = passage(operation, operand, result.ndim)
    assert set(found.mixed) == mixed
    if result.is_complex():
        result = result.real
    for dim, place in enumerate(found.to):
        if dim in mixed:
            continue
        for index in range(x.shape[dim]):
            entry = result.select(place, index).sum()
            (slope,) = torch.autograd.grad(entry, x, retain_graph=True)
            slope.select(dim, index).zero_()
            assert not slope.any()


@pytest.mark.parametrize("along", ["features", "tokens"])
def test_a_mean_is_subtracted_from_features_or_tokens_wherever_they_lie(along: str) -> None:
    """A norm subtracts the mean of features, and it isn't the last dimension that says so."""

    class Model(torch.nn.Module):
        def __init__(self, *, features_first: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.features_first = features_first
            self.embed, self.into = torch.nn.Conv1d(3, 8, 2, 2), torch.nn.Linear(8, 8)
            self.attend = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = torch.nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            if not self.features_first:
                x = x.mT
            x = x - x.mean(1 if self.features_first == (along == "features") else 2, keepdim=True)
            x = self.into(x.mT if self.features_first else x)
            return self.head((x + self.attend(x, x, x)[0]).mean(1))

    x = drawn(2, 3, 20)
    one, other = (
        TransformerAttribution(
            Model(features_first=first).to(x).eval(), propagate_to_input=True
        ).attribute(x, target=1)
        for first in (True, False)
    )
    assert_close(one, other)
