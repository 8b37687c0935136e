"""Products that sum over nothing, and sums of products, are these in every notation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import drawn

Product = Callable[[Tensor, Tensor], Tensor]
GATES: dict[str, Product] = {
    "last": lambda p, gate: p * gate,
    "einsum": lambda p, gate: torch.einsum("...,...->...", p, gate),
    "einsum, first": lambda p, gate: torch.einsum("bqx,bqk->bqk", gate, p),
    "addcmul": lambda p, gate: torch.addcmul(torch.zeros_like(p), p, gate),
    "addcmul in place": lambda p, gate: torch.zeros_like(p).addcmul_(gate, p),
    "with a factor": lambda p, gate: torch.addcmul(torch.zeros_like(p), p, gate, value=0.5) * 2,
    "of the rows": lambda p, gate: torch.einsum("bqk,bq->bqk", p, gate[..., 0]),
    "moved by einsum": lambda p, gate: torch.einsum(
        "bkq->bqk", torch.einsum("bqk->bkq", p) * gate.mT
    ),
    "of columns": lambda p, gate: torch.einsum("bkq,bq->bqk", p.mT, gate[..., 0]),
}
SUMS: dict[str, Product] = {
    "matmul": lambda p, v: p @ v,
    "baddbmm": lambda p, v: torch.baddbmm(v.new_zeros(p.shape[0], 4, 6), p, v),
    "baddbmm over": lambda p, v: torch.baddbmm(v.new_full((4, 6), torch.inf), p, v, beta=0),
    "half of it twice": lambda p, v: torch.baddbmm(v.new_zeros(4, 6), p, v, alpha=0.5) * 2,
    "baddbmm in place": lambda p, v: v.new_zeros(p.shape[0], 4, 6).baddbmm_(p, v),
}


class Gated(nn.Module):
    """Attention whose weights are multiplied with a gate of each query."""

    def __init__(self, gated: Product = GATES["last"], summed: Product = SUMS["matmul"]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.gate, self.head = nn.Linear(6, 18), nn.Linear(6, 1), nn.Linear(6, 3)
        self.gated, self.summed = gated, summed
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = self.gated((q @ k.mT).softmax(-1), self.gate(x).sigmoid())
        return self.head((x + self.summed(weights, v))[:, 0])


@pytest.mark.parametrize("method", [name for name in METHODS if "layer 1" not in name])
def test_the_same_model_has_the_same_relevance(method: str) -> None:
    x = drawn(2, 4, 6)
    expected = METHODS[method](Gated()).attribute(x, [0, 2])
    found = {}
    for name, gated in GATES.items():
        found[name] = METHODS[method](Gated(gated)).attribute(x, [0, 2])
    for name, summed in SUMS.items():
        found[name] = METHODS[method](Gated(summed=summed)).attribute(x, [0, 2])
    for name, relevance in found.items():
        torch.testing.assert_close(
            relevance, expected, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_what_is_added_in_place_is_written_where_it_was() -> None:
    x, total = drawn(2, 4, 6).requires_grad_(), torch.ones(2, 4, 6, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        summed = total.clone()
        again = summed.addcmul_(x, x.sigmoid(), value=2)
        assert again is summed
        return summed.flatten(1)

    (expected,) = torch.autograd.grad((1 + 2 * x * x.sigmoid()).flatten(1)[:, 5].sum(), x)
    plain = METHODS["gradient x input"](model).attribute(x.detach(), 5)
    assert_close(plain, (expected * x).detach())
