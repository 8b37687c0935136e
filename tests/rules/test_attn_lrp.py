"""The rules of AttnLRP against their formulas, written out."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import AttnLRP
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.attn_lrp import attn_lrp_rule
from captum_transformer.trace import traced_forward
from captum_transformer.trace.arguments import Arguments


def relevance(model, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Input times the rules' gradient of the sum of a sample's outputs."""
    with traced_forward(model, Arguments(inputs), rule=attn_lrp_rule) as forward:
        gradients = forward.gradients(forward.output, forward.edges)
        zeros = [torch.zeros_like(x) for x in inputs]
        return tuple(
            x * (zero if g is None else g)
            for x, zero, g in zip(inputs, zeros, gradients, strict=True)
        )


def by_autograd(model, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(model(*leaves).sum(), leaves)
    return tuple(x * g for x, g in zip(inputs, gradients, strict=True))


def half(x: Tensor) -> Tensor:
    """The same value with half the gradient."""
    return x / 2 + (x / 2).detach()


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


W = doubles(6, 5, seed=9)
CONSTANT = doubles(2, 4, 3, seed=2)


# Activations: relevance stays where it is, f(x) of the output's times the slope behind it.

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


def _written(x: Tensor, function) -> Tensor:
    copy = x * 1.0
    function(copy[:, :3])
    function(copy[:, 3:])
    return copy


def _by(x: Tensor, function) -> Tensor:
    return function(x)


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


def test_gpt2_has_the_stabiliser_of_the_fused_function():
    x = 1e-9 * doubles(4, 6)

    (result,) = relevance(lambda x: WRITTEN_IN_PYTHON["GPT-2's"](x) @ W, x)
    (fused,) = relevance(lambda x: ACTIVATIONS["gelu, tanh"](x) @ W, x)

    torch.testing.assert_close(result, fused, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [*ACTIVATIONS, *WRITTEN_IN_PYTHON])
def test_activation_at_and_near_zero_stays_finite(name, dtype):
    activation = {**ACTIVATIONS, **WRITTEN_IN_PYTHON}[name]
    x = torch.tensor([[0.0, -0.0, 6e-8, -1e-10, 1e-20, 1.0]]).to(dtype)

    (result,) = relevance(activation, x)

    assert result.isfinite().all()
    assert (result[x == 0] == 0).all()


# Products: each signal gets its share.

X, Y = doubles(2, 4, 5), doubles(2, 5, 3, seed=1)
PRODUCTS = {
    "matmul": (torch.matmul, X, Y),
    "operator": (lambda x, y: x @ y, X, Y),
    "bmm": (torch.bmm, X, Y),
    "mm": (lambda x, y: torch.stack([torch.mm(x[i], y[i]) for i in (0, 1)]), X, Y),
    "einsum": (lambda x, y: torch.einsum("bij,bjk->bik", x, y), X, Y),
    "einsum of a list": (lambda x, y: torch.einsum("bij,bjk->bik", [x, y]), X, Y),
    "baddbmm": (lambda x, y: torch.baddbmm(CONSTANT.to(x), x, y), X, Y),
    "by keyword": (lambda x, y: torch.matmul(input=x, other=y), X, Y),
    "entry by entry": (torch.mul, X, X + 1),
    "broadcast": (torch.mul, X, X[..., :1]),
    "in place": (lambda x, y: (x * 1.0).mul_(y), X, X + 1),
    "in place on a view": (
        lambda x, y: _by(x * 1.0, lambda z: (z[:, :2].mul_(y[:, :2]), z)[1])[:, :2],
        X,
        X + 1,
    ),
    "weights of a linear layer": (lambda x, y: F.linear(x, y[0].T), X, Y),
    "tensordot": (lambda x, y: torch.tensordot(x[0], y[0], 1), X, Y),
    "added to another": (lambda x, y: torch.addcmul(CONSTANT[:, :1, :1].to(x), x, y), X, X + 1),
}


def weigh(output: Tensor) -> Tensor:
    return output * doubles(*output.shape, seed=8).to(output.dtype)


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_each_factor_gets_half(product):
    function, x, y = product

    result = relevance(lambda x, y: weigh(function(x, y)), x, y)

    expected = by_autograd(lambda x, y: weigh(function(half(x), half(y))), x, y)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_term_that_is_added_gets_all_of_its_part(in_place):
    add = torch.Tensor.baddbmm_ if in_place else torch.baddbmm

    result = relevance(lambda b, x, y: add(b * 1.0, x, y), CONSTANT, X, Y)

    expected = by_autograd(lambda b, x, y: b + half(x) @ half(y), CONSTANT, X, Y)
    torch.testing.assert_close(result, expected)


def test_three_factors_get_a_third_each():
    z = doubles(2, 4, seed=3)
    parts = relevance(lambda x, y, z: torch.einsum("bij,bjk,bi->bk", x, y, z), X, Y, z)
    third = torch.einsum("bij,bjk,bi->bk", X, Y, z).sum() / 3
    for part in parts:
        torch.testing.assert_close(part.sum(), third)


def test_a_product_with_a_constant_is_linear():
    (result,) = relevance(lambda x: weigh(x @ Y * 2), X)
    torch.testing.assert_close(result, by_autograd(lambda x: weigh(x @ Y * 2), X)[0])


def sigmoid(x: Tensor) -> Tensor:
    """The same value with the slope of the identity rule."""
    return x * (x.sigmoid() / x).detach()


GATES = {
    "chunks": lambda x: x.chunk(2, -1),
    "other entries": lambda x: (x, x.flip(-1)),
    "projected": lambda x: (x, x @ doubles(6, 6, seed=3)),
    "pooled": lambda x: (x, x.mean(-1, keepdim=True)),
    "shifted": lambda x: (x + 1, x),
    "rearranged": lambda x: (x, x.mT.contiguous().view(x.shape)),
    "normalised": lambda x: (x, x.log_softmax(-1)),
    "inverted": lambda x: (torch.div(doubles(3, 6, seed=3), other=x), x),
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
        return weigh(half(signal) * half(1 + sigmoid(gate)))

    (result,) = relevance(gated, x)
    torch.testing.assert_close(result, by_autograd(by_hand, x)[0], rtol=1e-6, atol=1e-9)


def test_a_product_out_of_sight_is_refused():
    with pytest.raises(UnsupportedOperationError, match=r"no rule for `F.glu`.*ConservativeLRP"):
        relevance(F.glu, doubles(3, 6))


def test_cosine_similarity_is_a_product_of_two_norms():
    (for_x, for_y) = relevance(lambda x, y: F.cosine_similarity(x, y, dim=-1), X, X + 1)
    total = F.cosine_similarity(X, X + 1, dim=-1).sum()
    torch.testing.assert_close(for_x.sum(), total / 2)
    torch.testing.assert_close(for_y.sum(), total / 2)


# Attention: halves at both products, the softmax's own gradient between them.


def explicit(q, k, v, mask=None):
    scores = half(q) @ half(k).transpose(-1, -2) * q.shape[-1] ** -0.5
    probabilities = torch.softmax(scores if mask is None else scores + mask, -1)
    return half(probabilities) @ half(v)


Q, K, V = (doubles(2, 3, 4, 5, seed=s) for s in (4, 5, 6))
CAUSAL = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)
ATTENTION = {
    "fused": (F.scaled_dot_product_attention, None),
    "fused, causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), 1),
    "fused, masked": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=CAUSAL == 0),
        1,
    ),
    "written out": (lambda q, k, v: torch.softmax(q @ k.mT * 5**-0.5, -1) @ v, None),
    "written out, in place": (
        lambda q, k, v: torch.softmax((q @ k.mT).mul_(5**-0.5).add_(CAUSAL), -1) @ v,
        1,
    ),
    "einsum": (
        lambda q, k, v: torch.einsum(
            "bhqk,bhkd->bhqd",
            torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q * 5**-0.5, k), -1),
            v,
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_follows_the_uniform_rule(name):
    attend, causal = ATTENTION[name]
    mask = CAUSAL if causal else None

    result = relevance(lambda q, k, v: (attend(q, k, v) @ W[:5]).flatten(1), Q, K, V)

    expected = by_autograd(lambda q, k, v: explicit(q, k, v, mask) @ W[:5], Q, K, V)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", ["fused", "written out", "einsum"])
def test_what_the_inputs_do_not_reach_shares_in_nothing(name):
    attend, _ = ATTENTION[name]

    def scored(q, k, v):
        return (attend(q, k, v) @ W[:5]).flatten(1)

    (for_values,) = relevance(lambda v: scored(Q, K, v), V)
    torch.testing.assert_close(for_values, by_autograd(lambda v: scored(Q, K, v), V)[0])
    (for_queries,) = relevance(lambda q: scored(q, K, V), Q)
    torch.testing.assert_close(for_queries, by_autograd(lambda q: scored(q, K, V), Q)[0])
    both = relevance(lambda q, k: scored(q, k, V), Q, K)
    plain = by_autograd(lambda q, k: scored(q, k, V), Q, K)
    torch.testing.assert_close(both, tuple(p / 2 for p in plain))
    mixed = relevance(lambda q, v: scored(q, K, v), Q, V)
    plain = by_autograd(lambda q, v: scored(q, K, v), Q, V)
    torch.testing.assert_close(mixed, tuple(p / 2 for p in plain))


@pytest.mark.parametrize("name", ["fused", "written out", "einsum"])
def test_queries_keys_and_values_may_be_one_tensor(name):
    attend, _ = ATTENTION[name]
    (result,) = relevance(lambda x: (attend(x, x, x) @ W[:5]).flatten(1), Q)
    expected = by_autograd(lambda q, k, v: explicit(q, k, v) @ W[:5], Q, Q, Q)
    torch.testing.assert_close(result, sum(expected))


def test_a_bias_made_of_the_inputs_takes_its_part():
    bias = doubles(2, 3, 4, 4, seed=7)

    def fused(q, k, v, bias):
        return (F.scaled_dot_product_attention(q, k, v, attn_mask=bias) @ W[:5]).flatten(1)

    result = relevance(fused, Q, K, V, bias)
    expected = by_autograd(lambda q, k, v, b: explicit(q, k, v, b) @ W[:5], Q, K, V, bias)
    torch.testing.assert_close(result, expected)


# What is conserved and what is computed.


class GatedBlock(nn.Module):
    """A block without attention's softmax and without biases: relevance is conserved in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.RMSNorm(6, eps=0.0)
        self.gate, self.up, self.down = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.double()

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def test_relevance_is_conserved_through_gated_blocks_without_biases():
    model = nn.Sequential(GatedBlock(), GatedBlock(), nn.Flatten(), nn.Linear(24, 1, bias=False))
    x = doubles(3, 4, 6)
    (result,) = relevance(model.double(), x)
    torch.testing.assert_close(result.sum((1, 2)), model(x)[:, 0].detach(), rtol=1e-7, atol=1e-7)


OPERATIONS = {
    **{name: (f, doubles(2, 6)) for name, f in {**ACTIVATIONS, **WRITTEN_IN_PYTHON}.items()},
    **{f"product, {name}": product for name, product in PRODUCTS.items()},
    **{f"attention, {name}": (f, Q, K, V) for name, (f, _) in ATTENTION.items()},
    "layer norm": (nn.LayerNorm(5).double(), X),
    "RMS norm": (nn.RMSNorm(5).double(), X),
    "group norm": (nn.GroupNorm(2, 4).double(), X),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_bit_of_the_forward_pass_stays(name, dtype):
    function, *inputs = OPERATIONS[name]
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function).to(dtype)
    inputs = [x.to(dtype) for x in inputs]
    expected = function(*(x.clone().requires_grad_() for x in inputs))

    with traced_forward(function, Arguments(tuple(inputs)), rule=attn_lrp_rule) as forward:
        assert forward.output.dtype == expected.dtype
        assert torch.equal(forward.output, expected)


def test_there_is_no_convergence_delta():
    assert not AttnLRP(nn.Linear(2, 2)).has_convergence_delta()
