"""Dimensions of samples, features and keys are known after random moves."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import TransformerAttribution
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.batch import Batch
from captum_transformer.trace.mode import Trace
from captum_transformer.trace.value import Value
from tests.attr.subjects import assert_close, drawn

SAMPLES, TOKENS, WIDTH = 3, 4, 6
Move = Callable[[Tensor], Tensor]


def permuted(draw: random.Random, x: Tensor) -> Move:
    order = draw.sample(range(x.ndim), x.ndim)
    return lambda x: x.permute(order)


def merged(draw: random.Random, x: Tensor) -> Move | None:
    if x.ndim < 3:
        return None
    dim = draw.randrange(x.ndim - 1)
    return lambda x: x.flatten(dim, dim + 1)


def divided(draw: random.Random, x: Tensor) -> Move | None:
    places = [dim for dim, length in enumerate(x.shape) if length in (4, 6, 12, 18, 24)]
    if not places:
        return None
    dim = draw.choice(places)
    return lambda x: x.unflatten(dim, (2, -1))


def expanded(draw: random.Random, x: Tensor) -> Move | None:
    if x.numel() > 300:
        return None
    dim = draw.randrange(x.ndim + 1)
    return lambda x: x.unsqueeze(dim).expand(*x.shape[:dim], 2, *x.shape[dim:])


def copied(draw: random.Random, x: Tensor) -> Move:
    return draw.choice([Tensor.contiguous, Tensor.clone, lambda x: x * 1.0, lambda x: x + 0.0])


def in_a_list(draw: random.Random, x: Tensor) -> Move:
    dim = draw.randrange(x.ndim)
    return lambda x: torch.stack(x.unbind(dim), dim)


def joined_again(draw: random.Random, x: Tensor) -> Move:
    dim = draw.randrange(x.ndim)
    return lambda x: torch.cat(x.split(1, dim), dim)


MOVES = (permuted, merged, divided, expanded, copied, in_a_list, joined_again)


def moves(seed: int, x: Tensor, kinds: Sequence[Any] = MOVES) -> list[Move]:
    """Some random moves one after the other, each of which fits what the ones before it make."""
    draw, chosen = random.Random(seed), []
    while len(chosen) < 5:
        move = draw.choice(kinds)(draw, x)
        if move is not None:
            x = move(x)
            chosen.append(move)
    return chosen


def after(chosen: list[Move], x: Tensor) -> Tensor:
    for move in chosen:
        x = move(x)
    return x


def traced(
    function: Callable[[Tensor], Tensor], chosen: list[Move], x: Tensor
) -> tuple[Value, Tensor]:
    """What is known of the end of a function and some moves, and its numbers."""
    with Trace() as trace:
        entered = x.clone().requires_grad_().clone()
        value = trace.enter_input(entered)
        value.batch = Batch(0, Axis.of(value.shape, 0), SAMPLES)
        made = after(chosen, function(entered))
        end = trace.tape.find(made)
    assert end is not None
    return end, made.detach()


def inputs() -> Tensor:
    return torch.randn(SAMPLES, TOKENS, WIDTH)


# The numbers that are moved: each entry's sample, and each entry's token.
SAMPLE_OF = torch.arange(1.0, SAMPLES + 1)[:, None, None].expand(SAMPLES, TOKENS, WIDTH)
TOKEN_OF = torch.arange(float(SAMPLES * TOKENS)).reshape(SAMPLES, TOKENS, 1).expand(-1, -1, WIDTH)


def same_features(x: Tensor) -> Tensor:
    """A linear layer, which says that the last dimension holds features."""
    return F.linear(x, torch.eye(WIDTH))


@pytest.mark.parametrize("seed", range(40))
def test_known_samples_are_right(seed: int) -> None:
    end, made = traced(torch.clone, moves(seed, inputs()), SAMPLE_OF)

    if end.batch is not None:
        assert end.batch.is_whole
        assert torch.equal(end.batch.numbers(end.shape, made.dtype, made.device), made)


@pytest.mark.parametrize("seed", range(40))
def test_entries_along_features_are_of_one_token(seed: int) -> None:
    end, made = traced(same_features, moves(seed, inputs()), TOKEN_OF)

    for axis in end.features or ():
        along = made.reshape(axis)
        assert torch.equal(along, along[:, :1].expand_as(along))


@pytest.mark.parametrize("seed", range(20))
def test_all_is_known_after_moves_that_keep_each_dimension_apart(seed: int) -> None:
    chosen = moves(seed, inputs(), (permuted, divided, expanded, copied))

    end, made = traced(same_features, chosen, SAMPLE_OF)

    assert end.batch is not None
    assert torch.equal(end.batch.numbers(end.shape, made.dtype, made.device), made)
    assert end.features is not None
    assert math.prod(axis.size for axis in end.features) == WIDTH


@pytest.mark.parametrize("seed", range(40))
def test_weights_sum_to_one_along_their_keys(seed: int) -> None:
    chosen = moves(seed, torch.empty(SAMPLES, TOKENS, TOKENS))

    end, made = traced(lambda x: (x @ x.mT).softmax(-1), chosen, inputs())

    if end.keys is not None:
        assert end.keys.size == TOKENS
        total = made.reshape(end.keys).sum(1)
        torch.testing.assert_close(total, torch.ones_like(total))


class Flat(nn.Module):
    """Tokens of four features, which are given as one row, and normalised over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Linear(4, 6), nn.Linear(6, 18), nn.Linear(6, 3)
        self.double()

    def forward(self, rows: Tensor) -> Tensor:
        x = rows.unflatten(1, (3, 4)) if rows.ndim == 2 else rows
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
        q, k, v = self.qkv(self.embed(x)).chunk(3, -1)
        return self.head(((q @ k.mT).softmax(-1) @ v).mean(1))


def test_a_dimension_of_tokens_and_features_is_none_of_features() -> None:
    """Otherwise the mean over tokens would be one of features, as in a norm."""
    x = drawn(2, 3, 4)
    method = TransformerAttribution(Flat(), propagate_to_input=True)
    assert_close(method.attribute(x.flatten(1), 1).view_as(x), method.attribute(x, 1))
