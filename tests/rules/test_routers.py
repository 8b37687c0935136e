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
    RawAttention,
)

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


# A gate for each token, which is one of several features beside constants, and as a sigmoid.
Gates = tuple[Tensor, Tensor]
GATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Gates]]] = {
    "padded": (
        lambda z: F.pad(z[..., :1], (0, 1)),
        lambda z: (z[..., :1].sigmoid(), (-z[..., :1]).sigmoid()),
    ),
    "joined": (
        lambda z: torch.cat([z[..., 1:2], torch.ones_like(z[..., :1])], -1),
        lambda z: ((z[..., 1:2] - 1).sigmoid(), (1 - z[..., 1:2]).sigmoid()),
    ),
    "ahead": (
        lambda z: F.pad(z[..., -1:], (1, 0)),
        lambda z: ((-z[..., -1:]).sigmoid(), z[..., -1:].sigmoid()),
    ),
    "split": (
        lambda z: F.pad(z.split(1, -1)[1], (0, 1)),
        lambda z: (z[..., 1:2].sigmoid(), (-z[..., 1:2]).sigmoid()),
    ),
}


@pytest.mark.parametrize("method", [GIM, ConservativeLRP, GenericAttentionRelevance])
@pytest.mark.parametrize("notation", GATES)
def test_a_softmax_of_one_feature_and_constants_is_no_attention(notation: str, method: Any) -> None:
    """GIM took it for attention and softened its gradient."""
    joined, sigmoids = GATES[notation]

    def gated(gates: Callable[[Tensor], Gates], x: Tensor) -> Tensor:
        first, second = gates(x @ doubles(WIDTH, EXPERTS, seed=7))
        return first * experts(x)[0] + second * experts(x)[1]

    def softmax(scores: Tensor) -> Gates:
        weights = joined(scores).softmax(-1)
        return weights[..., :1], weights[..., 1:]

    x = doubles(2, TOKENS, WIDTH, seed=9)
    found, expected = (
        method(partial(model, partial(gated, gates))).attribute(x, target=1)
        for gates in (softmax, sigmoids)
    )
    torch.testing.assert_close(found, expected)
