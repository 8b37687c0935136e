"""A router's weights of experts are no attention, in any notation; predicted attention is."""

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


def one_by_one(x: Tensor) -> Tensor:
    parts = (w[..., None] * each for w, each in zip(weights(x).unbind(-1), experts(x), strict=True))
    return torch.stack([*parts]).sum(0)


MIXTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "einsum": lambda x: torch.einsum("bte,ebtd->btd", weights(x), torch.stack(experts(x))),
    "matmul": lambda x: (weights(x)[..., None, :] @ torch.stack(experts(x), 2)).squeeze(2),
    "bmm": lambda x: torch.bmm(
        weights(x).flatten(0, 1)[:, None], torch.stack(experts(x), 2).flatten(0, 1)
    ).view(x.shape),
    "sum": lambda x: (weights(x)[..., None] * torch.stack(experts(x), 2)).sum(2),
}


def model(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x + F.scaled_dot_product_attention(x, x, x) @ doubles(WIDTH, WIDTH, seed=8)
    return (x + mix(x)).mean(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("notation", MIXTURES)
def test_experts_are_mixed_in_any_notation(notation: str, method: str) -> None:
    x = doubles(2, TOKENS, WIDTH, seed=9)
    found, expected = (
        METHODS[method](partial(model, mix)).attribute(x, target=1)
        for mix in (MIXTURES[notation], one_by_one)
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
