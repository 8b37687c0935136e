"""Signals with softmax weights are no attention maps, and gated or masked maps still are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import ConservativeLRP, TransformerAttribution
from captum_transformer.calling import Arguments
from captum_transformer.trace import traced_forward
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import drawn, with_random_weights

Spelling = Callable[[Tensor], Tensor]
WIDTH = 6


WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one a token": lambda scores, h: scores[..., :1].softmax(1) * h,
    "one a feature": lambda scores, h: scores.softmax(1) * h,
    "expanded": lambda scores, h: h * scores[..., :1].softmax(1).expand_as(h),
    "features first": lambda scores, h: (scores.mT.softmax(-1) * h.mT).mT,
    "by a head": lambda scores, h: (
        scores.unflatten(2, (2, 3))[..., :1].softmax(1) * h.unflatten(2, (2, 3))
    ).flatten(2),
}
GO_ON: dict[str, Callable[[Tensor, Tensor, nn.Module], Tensor]] = {
    "skip": lambda weighted, x, _: x + weighted,
    "linear": lambda weighted, _, layer: layer(weighted),
    "linear, then skip": lambda weighted, x, layer: layer(weighted) + x,
    "scaled": lambda weighted, _, __: 3 * weighted,
    "joined": lambda weighted, x, layer: torch.cat([weighted[..., :3], x[..., 3:]], -1),
    "gated": lambda weighted, x, layer: layer(weighted) * x,
}


class Weighted(nn.Module):
    """Before attention, a signal is multiplied by softmax weights, without a sum."""

    def __init__(self, weights: str, then: str, hold: bool = False) -> None:
        super().__init__()
        self.weights, self.then, self.hold = WEIGHTS[weights], GO_ON[then], hold
        self.scores, self.layer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.query, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        y = self.then(self.weights(scores.detach() if self.hold else scores, x), x, self.layer)
        probabilities = (self.query(y) @ y.mT).softmax(-1)
        probabilities = probabilities.detach() if self.hold else probabilities
        return self.head((probabilities @ y).mean(1))


@pytest.mark.parametrize("then", GO_ON)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_weighted_signal_is_no_attention_map(weights: str, then: str):
    model = with_random_weights(Weighted(weights, then))
    held = with_random_weights(Weighted(weights, then, hold=True))
    x = drawn(2, 4, WIDTH, seed=1).requires_grad_()

    with traced_forward(model, Arguments(x.detach())) as forward:
        assert len(forward.calls) == 1
    (gradient,) = torch.autograd.grad(held(x)[:, 1].sum(), x)
    assert_close(ConservativeLRP(model).attribute(x.detach(), 1), (x * gradient).detach())
    assert TransformerAttribution(model, propagate_to_input=True).attribute(x.detach(), 1).any()


def test_maps_may_be_gated_and_masked():
    gates: dict[str, Spelling] = {
        "masked": lambda p: p * torch.ones(4, dtype=p.dtype),
        "gated by head": lambda p: p * p.mean((2, 3), keepdim=True).sigmoid(),
        "normalised": lambda p: p / p.sum(-1, keepdim=True),
        "mixed heads": lambda p: torch.einsum("bhqk,hg->bgqk", p, torch.ones(2, 2, dtype=p.dtype)),
        "differential": lambda p: p - p.flip(1),
        "squared": lambda p: p.square(),
    }
    for name, gate in gates.items():

        def model(x: Tensor, gate: Spelling = gate) -> Tensor:
            heads = x.unflatten(2, (2, 3)).transpose(1, 2)
            return (gate((heads @ heads.mT).softmax(-1)) @ heads).sum((1, 2))

        with traced_forward(model, Arguments(drawn(2, 4, WIDTH))) as forward:
            assert len(forward.calls) == 1, name
