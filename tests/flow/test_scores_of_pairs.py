"""Which tokens attend is known from the axis of the softmax, however the scores are made."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import describe
from captum_transformer.errors import UnsupportedOperationError
from tests.attr.subjects import METHODS, assert_close, drawn

Scores = Callable[[Tensor, Tensor], Tensor]
# Notations of one function of queries (samples, n, features) and keys (samples, m, features).
GROUPS: dict[str, dict[str, Scores]] = {
    "products": {
        "matmul": lambda q, k: q @ k.mT,
        "transposed": lambda q, k: (k @ q.mT).mT,
        "einsum": lambda q, k: torch.einsum("bmd,bnd->bnm", k, q),
        "summed": lambda q, k: (q[:, :, None] * k[:, None]).sum(-1),
        "keys first": lambda q, k: (k[:, None] * q[:, :, None]).sum(-1),
        "features ahead": lambda q, k: (k.mT[:, :, None] * q.mT[..., None]).sum(1),
        "turned": lambda q, k: (k[:, :, None] * q[:, None]).sum(-1).mT,
        "repeated": lambda q, k: (
            q[:, :, None].expand(-1, -1, 3, -1) * k[:, None].expand(-1, 4, -1, -1)
        ).sum(-1),
        "mean": lambda q, k: (q[:, :, None] * k[:, None]).mean(-1) * 6,
        "scaled": lambda q, k: (q[:, :, None] * k[:, None] * 2).sum(-1, keepdim=True)[..., 0] / 2,
    },
    "products with a bias of the keys": {
        "last": lambda q, k: q @ k.mT + k.mean(-1)[:, None],
        "first": lambda q, k: k.mean(-1)[:, None] + q @ k.mT,
        "transposed": lambda q, k: (k.mean(-1, keepdim=True) + k @ q.mT).mT,
    },
    "distances": {
        "cdist": lambda q, k: -torch.cdist(q, k),
        "keys first": lambda q, k: -torch.cdist(k, q).mT,
    },
    "sums": {
        "queries first": lambda q, k: (q[:, :, None] + k[:, None]).tanh().sum(-1),
        "keys first": lambda q, k: (k[:, None] + q[:, :, None]).tanh().sum(-1),
        "turned": lambda q, k: (q[:, None] + k[:, :, None]).tanh().sum(-1).mT,
    },
}


class Crossing(nn.Module):
    """Tokens of one input attend to those of another one, and then to each other."""

    def __init__(
        self, scores: Scores, softmax: Callable[[Tensor], Tensor] = lambda s: s.softmax(-1)
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.of_query, self.of_key, self.of_value = (nn.Linear(6, 6) for _ in range(3))
        self.own, self.head = nn.Linear(6, 18), nn.Linear(6, 3)
        self.scores, self.softmax = scores, softmax
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights = self.softmax(self.scores(self.of_query(x), self.of_key(y)))
        x = x + weights @ self.of_value(y)
        q, k, v = self.own(x).chunk(3, -1)
        return self.head((x + (q @ k.mT).softmax(-1) @ v)[:, 0])


@pytest.mark.parametrize(
    "method", ["AttentionRollout", "GenericAttentionRelevance", "TransformerAttribution", "GIM"]
)
@pytest.mark.parametrize("group", GROUPS)
def test_queries_are_known_however_scores_are_made(group: str, method: str) -> None:
    inputs = drawn(2, 4, 6), drawn(2, 3, 6, seed=1)
    expected, *others = (
        METHODS[method](Crossing(scores)).attribute(inputs, [0, 2])
        for scores in GROUPS[group].values()
    )
    for found in others:
        assert_close(found, expected, 1e-8)


COPIES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "repeated": lambda t, ahead, after: t.repeat_interleave(after, 1).repeat(1, ahead, 1),
    "picked": lambda t, ahead, after: t[
        :, torch.arange(t.shape[1]).repeat_interleave(after).repeat(ahead)
    ],
    "expanded": lambda t, ahead, after: (
        t[:, None, :, None].expand(-1, ahead, -1, after, -1).reshape(len(t), -1, t.shape[-1])
    ),
    "joined": lambda t, ahead, after: torch.cat(
        [torch.stack([t] * after, 2).flatten(1, 2)] * ahead, 1
    ),
}


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("method", ["AttentionRollout", "GenericAttentionRelevance"])
def test_copies_of_queries_beside_copies_of_keys_are_not_the_same_tokens(
    method: str, copies: str
) -> None:
    """Each pair is a row, so that the two sets looked like one."""

    def pairs(q: Tensor, k: Tensor) -> Tensor:
        copied = COPIES[copies](q, 1, k.shape[1]) * COPIES[copies](k, q.shape[1], 1)
        return copied.sum(-1).unflatten(1, (q.shape[1], k.shape[1]))

    inputs = drawn(2, 4, 6), drawn(2, 3, 6, seed=1)
    with pytest.raises(UnsupportedOperationError, match="are tokens of 2 streams"):
        METHODS[method](Crossing(pairs)).attribute(inputs, [0, 2])


@pytest.mark.parametrize("scores", ["matmul", "transposed"])
@pytest.mark.parametrize(
    "method", ["AttentionRollout", "GenericAttentionRelevance", "TransformerAttribution"]
)
def test_queries_are_known_if_the_sum_of_a_softmax_comes_first(method: str, scores: str) -> None:
    def softmax(scores: Tensor) -> Tensor:
        powers = scores.exp()
        return powers.sum(-1, keepdim=True).reciprocal() * powers

    inputs, products = (drawn(2, 4, 6), drawn(2, 3, 6, seed=1)), GROUPS["products"]
    expected = METHODS[method](Crossing(products["matmul"])).attribute(inputs, [0, 2])
    found = METHODS[method](Crossing(products[scores], softmax)).attribute(inputs, [0, 2])
    assert_close(found, expected, 1e-8)


@pytest.mark.parametrize("name", [(g, name) for g, group in GROUPS.items() for name in group])
def test_it_is_said_which_tokens_attend(name: tuple[str, str]) -> None:
    group, notation = name
    model, inputs = Crossing(GROUPS[group][notation]), (drawn(2, 4, 6), drawn(2, 3, 6, seed=1))
    streams = [(call.queries, call.keys) for call in describe(model, inputs).attention]
    assert streams == [("x", "y"), ("x", "x")]
