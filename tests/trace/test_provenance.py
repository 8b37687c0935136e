"""Samples, tokens and features are found in any layout of an input, never from its shape."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttnLRP, GenericAttentionRelevance
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace import traced_forward
from captum_transformer.trace.kinds import Role
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import drawn, with_random_weights

Spelling = Callable[[Tensor], Tensor]
WIDTH = 6


class Layout:
    """An order of the dimensions of tokens ``(samples, *grid, features)``.

    Args:
        samples: the number of samples.
        grid: the lengths of the dimensions of tokens.
        features: the number of features of a token.
        order: the new order of the dimensions.
    """

    def __init__(self, samples: int, grid: tuple[int, ...], features: int, order: tuple[int, ...]):
        self.shape = (samples, *grid, features)
        self.order = order

    def given(self, tokens: Tensor) -> Tensor:
        """Tokens ``(samples, tokens, features)`` in this layout."""
        return tokens.reshape(self.shape).permute(self.order).contiguous()

    def tokens(self, given: Tensor) -> Tensor:
        """Tokens ``(samples, tokens, features)`` of a tensor in this layout."""
        back = [self.order.index(dim) for dim in range(len(self.order))]
        return given.permute(back).flatten(1, -2)


def layouts(seed: int) -> Layout:
    """A random layout, samples first, often with dimensions of equal length."""
    draw = random.Random(seed)
    grid = tuple(draw.choice((2, 3, 4)) for _ in range(draw.choice((1, 1, 2, 3))))
    order = list(range(1, len(grid) + 2))
    while True:
        draw.shuffle(order)
        # The grid stays in row-major order, wherever the features are.
        if [dim for dim in order if dim <= len(grid)] == sorted(range(1, len(grid) + 1)):
            break
    return Layout(draw.choice((2, 3)), grid, draw.choice((2, 3, 4, 6)), (0, *order))


class Model(nn.Module):
    """Two layers of attention on tokens whose features are first mixed in one of several ways."""

    def __init__(self, first: str, features: int) -> None:
        super().__init__()
        self.first = first
        self.gain, self.norm = nn.Parameter(torch.ones(features)), nn.LayerNorm(features)
        self.into = nn.Linear(features, WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def mixed(self, x: Tensor) -> Tensor:
        weight, bias = self.into.weight, self.into.bias
        spellings: dict[str, Spelling] = {
            "linear": self.into,
            "matmul": lambda x: x @ weight.mT + bias,
            "einsum": lambda x: torch.einsum("bnd,ed->bne", x, weight) + bias,
            "tensordot": lambda x: torch.tensordot(x, weight, ([2], [1])) + bias,
            "convolution": lambda x: nn.functional.conv1d(x.mT, weight[..., None], bias).mT,
            "norm": lambda x: self.into(self.norm(x)),
            "norm by hand": lambda x: self.into(
                x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1) * self.gain
            ),
            "skip": lambda x: torch.cat([x, torch.relu(x)], -1) @ torch.cat([weight.mT, weight.mT]),
            "gate": lambda x: self.into(x * torch.sigmoid(x)),
        }
        return spellings[self.first](x)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.mixed(tokens)
        x = x + self.attend(x, x, x)[0]
        x = x + (self.query(x) @ x.mT).softmax(-1) @ x
        return self.head(x.mean(1))


FIRST = [*"linear matmul einsum tensordot convolution norm skip gate".split(), "norm by hand"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("first", FIRST)
def test_inputs_in_any_layout(first: str, seed: int):
    layout = layouts(seed)
    samples, *grid, features = layout.shape
    model = with_random_weights(Model(first, features))
    tokens = drawn(samples, torch.Size(grid).numel(), features, seed=seed)

    def other(given: Tensor) -> Tensor:
        return model(layout.tokens(given))

    given = layout.given(tokens)
    for method in (GenericAttentionRelevance, AttnLRP):
        expected = method(model).attribute(tokens, 1)
        assert_close(method(other).attribute(given, 1), layout.given(expected))
        assert_close(method(other).attribute_tokens(given, 1), expected.sum(-1))
    with traced_forward(other, Arguments(given)) as forward:
        (value,) = forward.values
        assert value.features is not None
        found = [axis.dim(value.shape) for axis in value.features]
        assert found == [layout.order.index(len(grid) + 1)]


class Cross(nn.Module):
    """Words attend to regions, whose positions are an input of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Linear(3, WIDTH)
        self.own, self.cross = (nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in "12")
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, words: Tensor, regions: Tensor, places: Tensor) -> Tensor:
        regions = regions + self.places(places)
        regions = regions + self.own(regions, regions, regions)[0]
        return self.head((words + self.cross(words, regions, regions)[0]).mean(1))


@pytest.mark.parametrize("swapped", list(itertools.product((False, True), repeat=3)))
def test_streams_with_features_before_tokens(swapped: tuple[bool, ...]):
    model = with_random_weights(Cross())
    given = drawn(2, 3, WIDTH, seed=1), drawn(2, 4, WIDTH, seed=2), drawn(2, 4, 3, seed=3)

    def turned(tensors: Any) -> tuple[Tensor, ...]:
        return tuple(t.mT if turn else t for t, turn in zip(tensors, swapped, strict=True))

    def other(words: Tensor, regions: Tensor, places: Tensor) -> Tensor:
        return model(*turned((words, regions, places)))

    expected = GenericAttentionRelevance(model).attribute(given, 1)
    method = GenericAttentionRelevance(other)
    assert_close(method.attribute(turned(given), 1), turned(expected))
    sums = tuple(part.sum(-1) for part in expected)
    assert_close(method.attribute_tokens(turned(given), 1), sums)


def test_a_number_for_each_token():
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.head = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 5)
            self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True)

        def forward(self, series: Tensor) -> Tensor:
            return self.head(self.layer(self.into(series.unsqueeze(-1))).mean(1))

    method = GenericAttentionRelevance(with_random_weights(Series()))
    series = drawn(2, 7, seed=1)
    assert_close(method.attribute_tokens(series, 1), method.attribute(series, 1))


def test_a_matrix_on_the_left_mixes_tokens():
    class Pooled(nn.Module):
        """A matrix of parameters is a layer on features or on tokens."""

        def __init__(self, of_tokens: bool) -> None:
            super().__init__()
            self.of_tokens = of_tokens
            self.matrix = nn.Parameter(torch.empty(4, 4))
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.matrix @ x if self.of_tokens else x @ self.matrix
            return self.attend(x, x, x)[0].mean(1)

    x = drawn(2, 4, 4, seed=1)
    for of_tokens in (False, True):
        model = with_random_weights(Pooled(of_tokens))
        with traced_forward(model, Arguments(x)) as forward:
            (value,) = forward.values
            assert value.features is not None
            assert [axis.dim(value.shape) for axis in value.features] == [2]
        found = GenericAttentionRelevance(model).attribute(x, 1)
        by_token = found.sum(-1, keepdim=True) / 4
        assert_close(found, by_token.expand_as(found))


def test_features_that_no_layer_mixes_are_unknown():
    def model(x: Tensor, y: Tensor) -> Tensor:
        score = (x @ x.mT).softmax(-1) @ x
        return score.sum((1, 2)) + (torch.ones(3, 4, dtype=y.dtype) @ y).sum((1, 2))

    x, y = drawn(2, 5, 6, seed=1), drawn(2, 4, 4, seed=2)
    with pytest.raises(UnsupportedOperationError, match=r"`r?matmul`.* which dimensions are feat"):
        GenericAttentionRelevance(model, with_identity=True).attribute((x, y))


def test_sizes_may_be_given_as_tensors():
    two, three = torch.tensor(2), torch.tensor(3)
    views: dict[str, Spelling] = {
        "view": lambda x: x.view(two, -1, 2),
        "reshape": lambda x: x.reshape(two, three, 4),
        "expand": lambda x: x[:, None].expand(-1, three, -1, -1),
        "narrow": lambda x: x.narrow(1, three - 3, three),
        "unflatten": lambda x: x.unflatten(1, (three, two)),
        "split": lambda x: x.split_with_sizes([two, two + 2], 1)[1],
        "tensor_split": lambda x: x.tensor_split(torch.tensor([2, 3]), 1)[2],
    }
    x = drawn(2, 6, 2)
    for name, view in views.items():
        with traced_forward(view, Arguments(x)) as forward:
            operation = forward.tape.operations[-1]
            value = forward.tape.find(forward.output)
            assert value is not None, name
            assert value.samples is not None, name
            numbers = value.samples.spread(torch.arange(2), value.shape)
            roles = {operand.role for operand in operation.operands}
        expected = torch.arange(2)[:, None, None].expand(x.shape)
        assert torch.equal(numbers, view(expected)), name
        assert roles <= {Role.SIGNAL, Role.EXTENT}, name
