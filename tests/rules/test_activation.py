"""The identity rule of AttnLRP against its formula: relevance stays where it is."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import GIM, AttnLRP, LibraGrad, TransformerAttribution
from captum_transformer.errors import UnsupportedOperationError
from tests.rules.by_hand import by_autograd, doubles, half, relevance, weigh

W = doubles(6, 5, seed=9)


def _written(x: Tensor, function) -> Tensor:
    copy = x * 1.0
    function(copy[:, :3])
    function(copy[:, 3:])
    return copy


def full_lrp(model):
    return TransformerAttribution(model, propagate_to_input=True)


def _by(x: Tensor, function) -> Tensor:
    return function(x)


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "silu, in place": lambda x: F.silu(x * 1.0, inplace=True),
    "relu": F.relu,
    "relu, in place": lambda x: (x * 1.0).relu_(),
    "leaky relu": F.leaky_relu,
    "tanh": torch.tanh,
    "tanh, in place": lambda x: (x * 1.0).tanh_(),
    "tanh, in place on a view": lambda x: _written(x, torch.Tensor.tanh_),
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "elu": F.elu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "square": torch.square,
    "cube": lambda x: torch.pow(x, 3),
    "power by keyword": lambda x: torch.pow(exponent=3, input=x),
    "exponential": torch.exp,
    "square root": lambda x: x.abs().sqrt(),
    "softcapping": lambda x: 2 * torch.tanh(x / 2),
}
WRITTEN_IN_PYTHON = {
    "GPT-2's": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
    ),
    "with products only": lambda x: (
        0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))
    ),
    "error function": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "scaled afterwards": lambda x: (x * (1 + torch.tanh(x))) / 2,
    "scaled by a vector": lambda x: (x * W[:, 0]) * (1 + torch.tanh(x)),
    "divided by a vector": lambda x: (x / (2 + W[:, 0].abs())) * (1 + torch.tanh(x)),
    "sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "sigmoid first": lambda x: torch.sigmoid(1.702 * x) * x,
    "by keyword": lambda x: torch.mul(torch.sigmoid(x), other=x),
    "written into the signal": lambda x: (x * 1.0).mul_((x * 1.0).sigmoid() + 1),
    "written into itself": lambda x: _by(x * 1.0, lambda y: y.mul_(y.sigmoid() + 1)),
    "written into the gate": lambda x: _by(x * 1.0, lambda y: (y.sigmoid() + 1).mul_(y)),
    "by a quotient": lambda x: x / (1 + torch.exp(-x)),
    "hard": lambda x: x * F.relu6(x + 3) / 6,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "product with itself": lambda x: x * x,
    "product with itself, by keyword": lambda x: torch.mul(x, other=x),
    "two activations": lambda x: torch.tanh(x) * torch.sigmoid(x),
    "of an activation": lambda x: _by(F.silu(x), lambda y: y * (1 + torch.sigmoid(y))),
    "on a copy": lambda x: x * (1 + torch.sigmoid(x.clone())),
}


@pytest.mark.parametrize("name", [*ACTIVATIONS, *WRITTEN_IN_PYTHON])
def test_activation_keeps_relevance_where_it_is(name):
    activation = {**ACTIVATIONS, **WRITTEN_IN_PYTHON}[name]
    x = doubles(4, 6)

    (result,) = relevance(lambda x: activation(x) @ W, x)

    expected = activation(x) * W.sum(1)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["gelu", "tanh", "sigmoid"])
def test_slope_has_the_authors_stabiliser(name):
    x = torch.tensor([[-1e-9, 1e-9, 3e-10, -1e-11, 2.0, -1e-10]], dtype=torch.float64)

    (result,) = relevance(lambda x: ACTIVATIONS[name](x) @ W, x)

    quotient = torch.where(x == -1e-10, 1e-10, x + 1e-10)
    torch.testing.assert_close(result, x * ACTIVATIONS[name](x) / quotient * W.sum(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [*ACTIVATIONS, *WRITTEN_IN_PYTHON])
def test_activation_at_and_near_zero_stays_finite(name, dtype):
    activation = {**ACTIVATIONS, **WRITTEN_IN_PYTHON}[name]
    x = torch.tensor([[0.0, -0.0, 6e-8, -1e-10, 1e-20, 1.0]]).to(dtype)

    (result,) = relevance(activation, x)

    assert result.isfinite().all()
    assert (result[x == 0] == 0).all()


def activated(x: Tensor) -> Tensor:
    """An activation with the slope of the identity rule."""
    return x * ((1 + x.sigmoid()) / x).detach()


GATES = {
    "chunks": lambda x: x.chunk(2, -1),
    "other entries": lambda x: (x, x.flip(-1)),
    "projected": lambda x: (x, x @ doubles(6, 6, seed=3)),
    "pooled": lambda x: (x, x.mean(-1, keepdim=True)),
    "shifted": lambda x: (x + 1, x),
    "rearranged": lambda x: (x, x.mT.contiguous().view(x.shape)),
    "normalised": lambda x: (x, x.log_softmax(-1)),
    "of several": lambda x: (x, x + doubles(2, 3, 6, seed=3)),
    "for several": lambda x: (x * doubles(2, 3, 6, seed=3), x),
}


@pytest.mark.parametrize("parts", GATES.values(), ids=GATES)
def test_a_gate_that_is_not_made_of_the_signal_alone_gets_half(parts):
    x = doubles(3, 6)

    def gated(x):
        signal, gate = parts(x)
        return weigh(signal * (1 + torch.sigmoid(gate)))

    def by_hand(x):
        signal, gate = parts(x)
        return weigh(half(signal) * half(activated(gate)))

    (result,) = relevance(gated, x)
    torch.testing.assert_close(result, by_autograd(by_hand, x)[0], rtol=1e-6, atol=1e-9)


SPLIT = {
    "by glu": lambda a, b: F.glu(torch.cat([a * b, a], -1)),
    "by parts": lambda a, b: _by(
        torch.cat([a * b, a], -1), lambda c: c[..., :6] * c[..., 6:].sigmoid()
    ),
    "by a stack": lambda a, b: _by(torch.stack([a * b, a]), lambda c: c[0] * c[1].sigmoid()),
    "in other shapes": lambda a, b: a * b * a.reshape(2, 9).sigmoid().reshape(1, 3, 6),
    "transposed": lambda a, b: ((a * b).mT * a.mT.sigmoid()).mT,
    "by halves": lambda a, b: torch.cat(
        [h * w for h, w in zip((a * b).chunk(2, -1), a.sigmoid().chunk(2, -1), strict=True)], -1
    ),
}


@pytest.mark.parametrize("method", [AttnLRP, GIM, LibraGrad, full_lrp], ids=lambda m: m.__name__)
@pytest.mark.parametrize("split", SPLIT)
def test_an_activation_with_a_factor_between_is_refused_in_other_places_too(split, method):
    def model(x):
        x = SPLIT[split](x @ doubles(6, 6, seed=3), x @ doubles(6, 6, seed=4))
        return F.scaled_dot_product_attention(x, x, x).mean(1)

    with pytest.raises(UnsupportedOperationError, match="in several steps"):
        method(model).attribute(doubles(1, 3, 6), target=1)


def test_a_gate_of_other_parts_of_what_was_joined_is_a_gate():
    def model(spelling):
        def run(x):
            x = spelling(x @ doubles(6, 6, seed=3), x @ doubles(6, 6, seed=4))
            return F.scaled_dot_product_attention(x, x, x).mean(1)

        return AttnLRP(run).attribute(doubles(1, 3, 6), target=1)

    found = model(lambda a, b: F.glu(torch.cat([a.new_zeros(0), a, b], -1)))
    torch.testing.assert_close(found, model(lambda a, b: a * b.sigmoid()))
