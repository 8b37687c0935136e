"""The number of terms of an entry that hold a source: sums count, products don't."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captum_transformer.rules.flow.terms import made
from captum_transformer.trace.mode import Trace


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda x: x + x, 2),
        (lambda x: x - x.sin(), 2),
        (lambda x: x * x.sin(), 1),
        (lambda x: (x + x) * x, 1),
        (lambda x: (x + x).tanh(), 2),
        (lambda x: x * x + x, 2),
        (lambda x: (x + x).sigmoid() + (x - x.exp()), 4),
    ],
)
def test_terms_of_each_entry(function: Callable[[Tensor], Tensor], count: int) -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with Trace() as trace:
        entered = trace.enter_input(x := x.clone())
        function(x)
    counts = {entered: 1}
    for operation in trace.tape.operations:
        (output,) = operation.outputs
        counts[output] = made(operation, output, tuple(counts[v] for _, v in operation.traced()))
    assert counts[output] == count
