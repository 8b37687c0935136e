"""Weights of experts and sigmoids are not attention, and predicted attention is."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LibraGrad,
    RawAttention,
)
from captum_transformer.errors import UnsupportedOperationError

METHODS = {
    method.__name__: method
    for method in (GIM, AttentionRollout, AttnLRP, ConservativeLRP, GenericAttentionRelevance)
}
WIDTH, TOKENS, EXPERTS = 6, 4, 3


def doubles(*size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def experts(x: Tensor) -> list[Tensor]:
    return [F.gelu(x @ doubles(WIDTH, WIDTH, seed=seed)) for seed in range(EXPERTS)]


def weights(x: Tensor) -> Tensor:
    return (x @ doubles(WIDTH, EXPERTS, seed=7)).softmax(-1)


def masked(x: Tensor) -> Tensor:
    """The best two, the others masked before the softmax."""
    scores = x @ doubles(WIDTH, EXPERTS, seed=7)
    best = scores.topk(2, -1)
    return torch.full_like(scores, -torch.inf).scatter(-1, best.indices, best.values).softmax(-1)


def chosen(x: Tensor) -> Tensor:
    """The best two among zeros, normalised again."""
    best = weights(x).topk(2, -1)
    again = best.values / best.values.sum(-1, keepdim=True)
    return torch.zeros_like(weights(x)).scatter(-1, best.indices, again)


def gathered(x: Tensor) -> Tensor:
    """The best two by their indices, among zeros."""
    best = weights(x).topk(2, -1).indices
    return torch.zeros_like(weights(x)).scatter(-1, best, weights(x).gather(-1, best))


ROUTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": weights,
    "masked": masked,
    "chosen": chosen,
    "gathered": gathered,
}


def one_by_one(x: Tensor, weights: Callable[[Tensor], Tensor] = weights) -> Tensor:
    parts = (w[..., None] * each for w, each in zip(weights(x).unbind(-1), experts(x), strict=True))
    return torch.stack([*parts]).sum(0)


def side_by_side(x: Tensor) -> Tensor:
    """All experts as one layer."""
    layer = torch.cat([doubles(WIDTH, WIDTH, seed=seed) for seed in range(EXPERTS)], 1)
    return F.gelu(x @ layer).unflatten(-1, (EXPERTS, WIDTH))


Mix = Callable[..., Tensor]
MIXTURES: dict[str, Mix] = {
    "einsum": lambda x, weights: torch.einsum("bte,ebtd->btd", weights(x), torch.stack(experts(x))),
    "matmul": lambda x, weights: (weights(x)[..., None, :] @ torch.stack(experts(x), 2)).squeeze(2),
    "columns": lambda x, weights: (torch.stack(experts(x), -1) @ weights(x)[..., None]).squeeze(-1),
    "bmm": lambda x, weights: torch.bmm(
        weights(x).flatten(0, 1)[:, None], torch.stack(experts(x), 2).flatten(0, 1)
    ).view(x.shape),
    "sum": lambda x, weights: (weights(x)[..., None] * torch.stack(experts(x), 2)).sum(2),
    "one layer": lambda x, weights: torch.einsum("bted,bte->btd", side_by_side(x), weights(x)),
}


def model(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x + F.scaled_dot_product_attention(x, x, x) @ doubles(WIDTH, WIDTH, seed=8)
    return (x + mix(x)).mean(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("router", ROUTERS)
def test_experts_are_mixed_in_any_notation(router: str, method: str) -> None:
    x, weights = doubles(2, TOKENS, WIDTH, seed=9), ROUTERS[router]

    def explained(mix: Mix) -> Tensor:
        return METHODS[method](partial(model, partial(mix, weights=weights))).attribute(x, target=1)

    expected = explained(one_by_one)
    for mix in MIXTURES.values():
        torch.testing.assert_close(explained(mix), expected)


@pytest.mark.parametrize("method", METHODS)
def test_several_mixtures_of_each_token_at_once_are_mixtures(method: str) -> None:
    """As of the queries, keys and values that are each made of all earlier layers."""
    scores = doubles(WIDTH, 2 * EXPERTS, seed=6)

    def weights(x: Tensor) -> Tensor:
        return (x @ scores).unflatten(-1, (2, EXPERTS)).softmax(-1)

    def at_once(x: Tensor) -> Tensor:
        mixed = torch.einsum("ebtd,btve->vbtd", torch.stack(experts(x)), weights(x))
        return mixed[0] + 2 * mixed[1]

    def one_after_the_other(x: Tensor) -> Tensor:
        of_first, of_second = weights(x).unbind(2)
        return one_by_one(x, lambda _: of_first) + 2 * one_by_one(x, lambda _: of_second)

    x = doubles(2, TOKENS, WIDTH, seed=9)
    found, expected = (
        METHODS[method](partial(model, mix)).attribute(x, target=1)
        for mix in (at_once, one_after_the_other)
    )
    torch.testing.assert_close(found, expected)


def test_the_largest_weights_of_experts_without_the_others() -> None:
    """Only the chosen experts' outputs are taken, as indices or by a kernel."""

    def picked(x: Tensor) -> Tensor:
        best = weights(x).topk(2, -1)
        outputs = side_by_side(x).gather(2, best.indices[..., None].expand(-1, -1, -1, WIDTH))
        return (best.values[..., None, :] @ outputs).squeeze(2)

    x = doubles(2, TOKENS, WIDTH, seed=9)
    for method in METHODS.values():
        found, expected = (
            method(partial(model, mix)).attribute(x, target=1)
            for mix in (picked, partial(one_by_one, weights=gathered))
        )
        torch.testing.assert_close(found, expected)


def test_attention_that_is_predicted_from_its_query_is_attention() -> None:
    def predicted(x: Tensor) -> Tensor:
        return (x @ doubles(WIDTH, TOKENS, seed=3)).softmax(-1) @ x

    x = doubles(2, TOKENS, WIDTH, seed=9)
    method: Any = RawAttention(partial(model, predicted))
    found = method.attribute_tokens(x, target=1)
    attended = x + F.scaled_dot_product_attention(x, x, x) @ doubles(WIDTH, WIDTH, seed=8)
    maps = (attended @ doubles(WIDTH, TOKENS, seed=3)).softmax(-1)
    torch.testing.assert_close(found, maps.mean(1))


def test_weights_of_neighbouring_tokens_are_held_as_attention_is() -> None:
    """A convolution whose kernel each token predicts (ConvBERT) mixes tokens."""

    def convolved(x: Tensor, *, held: bool) -> Tensor:
        windows = F.unfold(x.mT[..., None], (3, 1), padding=(1, 0))  # (samples, WIDTH * 3, TOKENS)
        windows = windows.view(-1, WIDTH, 3, TOKENS).permute(0, 3, 1, 2).flatten(0, 1)
        with torch.set_grad_enabled(not held):
            kernels = weights(x).flatten(0, 1)[..., None]
        return torch.bmm(windows, kernels).view(x.shape)

    x = doubles(2, TOKENS, WIDTH, seed=9)
    found, expected = (
        ConservativeLRP(partial(model, partial(convolved, held=held))).attribute(x, target=1)
        for held in (False, True)
    )
    torch.testing.assert_close(found, expected)


def with_zeros(x: Tensor) -> Tensor:
    return torch.stack([x, torch.zeros_like(x)], -1)


SIGMOIDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "picked": lambda v, g: v * with_zeros(g).softmax(-1)[..., 0],
    "summed": lambda v, g: (with_zeros(v) * with_zeros(g).softmax(-1)).sum(-1),
}


@pytest.mark.parametrize("method", [GIM, ConservativeLRP, GenericAttentionRelevance])
@pytest.mark.parametrize("notation", SIGMOIDS)
def test_a_softmax_of_one_entry_and_zero_is_no_attention(notation: str, method: Any) -> None:
    def gated(gate: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        return gate(x @ doubles(WIDTH, WIDTH, seed=4), x @ doubles(WIDTH, WIDTH, seed=5))

    x = doubles(2, TOKENS, WIDTH, seed=9)
    found, expected = (
        method(partial(model, partial(gated, gate))).attribute(x, target=1)
        for gate in (SIGMOIDS[notation], lambda v, g: v * g.sigmoid())
    )
    torch.testing.assert_close(found, expected)


def written(z: Tensor, *, as_columns: bool) -> Tensor:
    joined = z.new_zeros(*z.shape[:-1], 2)
    if as_columns:
        joined[..., :1] = z[..., :1]
    else:
        joined[..., 0].copy_(z[..., 0])
        joined[..., 1] = z[..., 1]
    return joined


FIRST = torch.tensor([1.0, 0.0], dtype=torch.float64)
ZERO = torch.zeros(2, TOKENS, 1, dtype=torch.long)
# Two scores of each token. One may be a constant, and none has a dimension of features.
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "padded": lambda z: F.pad(z[..., :1], (0, 1)),
    "joined": lambda z: torch.cat([z[..., 1:2], torch.ones_like(z[..., :1])], -1),
    "ahead": lambda z: F.pad(z[..., -1:], (1, 0)),
    "split": lambda z: F.pad(z.split(1, -1)[1], (0, 1)),
    "multiplied": lambda z: z[..., :1] * FIRST,
    "einsum": lambda z: torch.einsum("bt,e->bte", z[..., 0], FIRST),
    "matmul": lambda z: z[..., :1] @ FIRST[None],
    "kron": lambda z: torch.kron(z[..., :1], FIRST),
    "chosen": lambda z: torch.where(FIRST.bool(), z[..., :1], 0.0),
    "masked": lambda z: z[..., :1].expand(-1, -1, 2).masked_fill(~FIRST.bool(), 0.0),
    "repeated": lambda z: z[..., :1].repeat(1, 1, 2) * FIRST,
    "written": lambda z: written(z, as_columns=True),
    "slice": lambda z: torch.slice_scatter(z.new_zeros(2, TOKENS, 2), z[..., :1], -1, 0, 1),
    "select": lambda z: torch.select_scatter(z.new_zeros(2, TOKENS, 2), z[..., 0], -1, 0),
    "scattered": lambda z: z.new_zeros(2, TOKENS, 2).scatter(-1, ZERO, z[..., :1]),
    "added": lambda z: z.new_zeros(2, TOKENS, 2).index_add(-1, ZERO[0, 0], z[..., :1]),
    "layer": lambda z: (z @ doubles(EXPERTS, 1, seed=3)) * FIRST,
    "reduced": lambda z: torch.cat([z.amax(-1, keepdim=True), z.mean(-1, keepdim=True)], -1),
    "two joined": lambda z: torch.cat([z[..., :1], z[..., 1:2]], -1),
    "two stacked": lambda z: torch.stack([z[..., 0], z[..., 1]], -1),
    "two layers": lambda z: torch.stack([z @ doubles(EXPERTS, seed=i) for i in (1, 2)], -1),
    "two written": lambda z: written(z, as_columns=False),
    "two added": lambda z: F.pad(z[..., :1], (0, 1)) + F.pad(z[..., 1:2], (1, 0)),
}
QUICK = {"padded", "multiplied", "written", "two stacked"}
NOTATIONS = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SCORES]
MIXED: list[Callable[[Tensor, list[Tensor]], Tensor]] = [
    lambda p, made: p[..., :1] * made[0] + p[..., 1:] * made[1],
    lambda p, made: torch.einsum("bte,ebtd->btd", p, torch.stack(made[:2])),
]


@pytest.mark.parametrize("method", [GIM, ConservativeLRP, GenericAttentionRelevance])
@pytest.mark.parametrize("notation", NOTATIONS)
def test_a_softmax_of_numbers_of_one_token_is_no_attention(notation: str, method: Any) -> None:
    """Only the way back shows that they are, and not scores of keys."""

    def scores(x: Tensor) -> Tensor:
        return SCORES[notation](x @ doubles(WIDTH, EXPERTS, seed=7))

    def sigmoids(x: Tensor) -> Tensor:
        gate = scores(x)[..., :1] - scores(x)[..., 1:]
        return gate.sigmoid() * experts(x)[0] + (-gate).sigmoid() * experts(x)[1]

    def softmax(mix: Callable[[Tensor, list[Tensor]], Tensor], x: Tensor) -> Tensor:
        return mix(scores(x).softmax(-1), experts(x))

    x = doubles(2, TOKENS, WIDTH, seed=9)
    expected = method(partial(model, sigmoids)).attribute(x, target=1)
    for mix in MIXED:
        found = method(partial(model, partial(softmax, mix))).attribute(x, target=1)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", [AttnLRP, LibraGrad])
@pytest.mark.parametrize("notation", ["padded", "multiplied", "written", "slice", "layer"])
def test_a_softmax_of_one_number_has_no_rule(notation: str, method: Any) -> None:
    """As a sigmoid it would have the rule for activations."""

    def gated(x: Tensor) -> Tensor:
        scores = SCORES[notation](x @ doubles(WIDTH, EXPERTS, seed=7))
        return scores.softmax(-1)[..., :1] * experts(x)[0]

    with pytest.raises(UnsupportedOperationError, match="of one entry of a signal"):
        method(partial(model, gated)).attribute(doubles(2, TOKENS, WIDTH, seed=9), target=1)


@pytest.mark.parametrize("function", [torch.softmax, lambda x, d: 1 + x.log_softmax(d)])
@pytest.mark.parametrize("method", [AttnLRP, LibraGrad])
def test_a_softmax_of_a_single_entry_is_one(function: Any, method: Any) -> None:
    def gated(x: Tensor) -> Tensor:
        return function(x @ doubles(WIDTH, 1, seed=7), -1) * experts(x)[0]

    x = doubles(2, TOKENS, WIDTH, seed=9)
    found = method(partial(model, gated)).attribute(x, target=1)
    expected = method(partial(model, lambda x: experts(x)[0])).attribute(x, target=1)
    torch.testing.assert_close(found, expected)


def keys_of(x: Tensor) -> list[Tensor]:
    """The score of each token, computed one after the other."""
    return [token @ doubles(WIDTH, 1, seed=2) for token in x.unbind(1)]


def location(x: Tensor) -> Tensor:
    """Scores of places, by their distance from one that is predicted."""
    place = x.mean(1) @ doubles(WIDTH, 1, seed=2)
    return -((place - torch.arange(TOKENS, dtype=torch.float64)) ** 2)


# Scores of tokens (samples, tokens), each in several notations.
POOLS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "scored": [
        lambda x: (x @ doubles(WIDTH, 1, seed=2))[..., 0],
        lambda x: torch.cat(keys_of(x), 1),
        lambda x: torch.stack(keys_of(x), 1)[..., 0],
        lambda x: torch.stack([score[:, 0] for score in keys_of(x)], 1),
    ],
    "predicted": [
        lambda x: x.mean(1) @ doubles(WIDTH, TOKENS, seed=2),
        lambda x: F.linear(x.mean(1), doubles(WIDTH, TOKENS, seed=2).mT),
    ],
    "location": [location],
}
SLOW = [ConservativeLRP, GenericAttentionRelevance]
SUMS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda p, v: (p[:, None] @ v)[:, 0],
    lambda p, v: torch.einsum("bt,btd->bd", p, v),
    lambda p, v: (p[..., None] * v).sum(1),
]


@pytest.mark.parametrize(
    "method",
    [GIM, RawAttention, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)],
)
@pytest.mark.parametrize("kind", POOLS)
def test_pooling_of_tokens_is_attention_in_any_notation(kind: str, method: Any) -> None:
    x = doubles(2, TOKENS, WIDTH, seed=9)

    def pooled(scores: Callable[[Tensor], Tensor], total: Any, x: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x) @ doubles(WIDTH, WIDTH, seed=8)
        return total(scores(x).softmax(-1), x @ doubles(WIDTH, WIDTH, seed=4))

    found = [
        method(partial(pooled, scores, total)).attribute(x, target=1)
        for scores in POOLS[kind]
        for total in SUMS
    ]
    if method is RawAttention:
        attended = x + F.scaled_dot_product_attention(x, x, x) @ doubles(WIDTH, WIDTH, seed=8)
        torch.testing.assert_close(found[0].sum(-1), POOLS[kind][0](attended).softmax(-1))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("method", [GIM, ConservativeLRP, GenericAttentionRelevance])
def test_predicted_weights_of_rolled_neighbours_are_attention(method: Any) -> None:
    """They are no weights of experts, though each token has values of its own."""

    def rolled(x: Tensor) -> Tensor:
        return torch.stack([x.roll(step, 1) for step in range(EXPERTS)], 2)

    def gathered(x: Tensor) -> Tensor:
        places = (torch.arange(TOKENS)[:, None] - torch.arange(EXPERTS)) % TOKENS
        return x[:, places]

    def mixed(neighbours: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.einsum("bte,bted->btd", weights(x), neighbours(x))

    def whole(x: Tensor) -> Tensor:
        places = (torch.arange(TOKENS)[:, None] - torch.arange(EXPERTS)) % TOKENS
        maps = x.new_zeros(2, TOKENS, TOKENS).scatter(-1, places.expand(2, -1, -1), weights(x))
        return maps @ x

    x = doubles(2, TOKENS, WIDTH, seed=9)
    expected, *found = (
        method(partial(model, mix)).attribute(x, target=1)
        for mix in (whole, partial(mixed, rolled), partial(mixed, gathered))
    )
    for one in found:
        torch.testing.assert_close(one, expected)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("btu,bud->btd", (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), v)


def attended(x: Tensor, attend: Callable[..., Tensor], place: int) -> Tensor:
    q, k, v = F.linear(x, doubles(3 * WIDTH, WIDTH, seed=20 + place)).chunk(3, -1)
    return F.linear(attend(q, k, v), doubles(WIDTH, WIDTH, seed=30 + place))


# What each token may choose from; all of it is of that token.
CHOSEN: dict[str, Callable[..., list[Tensor]]] = {
    "experts that attend": lambda x, attend: [attended(x, attend, p) for p in range(EXPERTS)],
    "attention or layers": lambda x, attend: [attended(x, attend, 0), *experts(x)[1:]],
    "layers one by one": lambda x, attend: [
        x,
        x + attended(x, attend, 0),
        attended(x + attended(x, attend, 0), attend, 1),
    ],
}
TOGETHER: dict[str, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "einsum": lambda w, of: torch.einsum("bte,btde->btd", w, torch.stack(of, -1)),
    "stacked": lambda w, of: (w[..., None] * torch.stack(of, 2)).sum(2),
    "in front": lambda w, of: torch.einsum("bte,ebtd->btd", w, torch.stack(of)),
}


@pytest.mark.parametrize("method", [AttnLRP, ConservativeLRP, GIM, LibraGrad])
@pytest.mark.parametrize("attend", [fused, written_out])
@pytest.mark.parametrize("mixed", TOGETHER)
@pytest.mark.parametrize("chosen", CHOSEN)
def test_what_attends_may_be_chosen_like_an_expert(
    chosen: str, mixed: str, attend: Callable[..., Tensor], method: Any
) -> None:
    def score(mix: Callable[[Tensor, list[Tensor]], Tensor], x: Tensor) -> Tensor:
        return mix(weights(x), CHOSEN[chosen](x, attend)).flatten(1)

    def one_by_one(w: Tensor, of: list[Tensor]) -> Tensor:
        parts = (p[..., None] * one for p, one in zip(w.unbind(-1), of, strict=True))
        return sum(parts, start=torch.zeros(()))

    x = doubles(2, TOKENS, WIDTH, seed=9)
    found, expected = (
        method(partial(score, mix)).attribute(x, target=1) for mix in (TOGETHER[mixed], one_by_one)
    )
    torch.testing.assert_close(found, expected)
