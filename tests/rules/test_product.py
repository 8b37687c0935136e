"""The uniform rule of AttnLRP against its formula: each signal of a product gets its share."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import GIM, AttnLRP, LibraGrad
from tests.rules.by_hand import by_autograd, doubles, half, relevance, weigh

W = doubles(6, 5, seed=9)
CONSTANT = doubles(2, 4, 3, seed=2)

X, Y = doubles(2, 4, 5), doubles(2, 5, 3, seed=1)


def _first_two_multiplied(x: Tensor, y: Tensor) -> Tensor:
    x[:, :2].mul_(y[:, :2])
    return x[:, :2]


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
        lambda x, y: _first_two_multiplied(x * 1.0, y),
        X,
        X + 1,
    ),
    "weights of a linear layer": (lambda x, y: F.linear(x, y[0].T), X, Y),
    "tensordot": (lambda x, y: torch.tensordot(x[0], y[0], 1), X, Y),
    "read at places": (
        lambda x, y: F.grid_sample(x[:, None], y[:, None, :, :2] * 0.5, align_corners=False),
        X,
        Y,
    ),
    "added to another": (lambda x, y: torch.addcmul(CONSTANT[:, :1, :1].to(x), x, y), X, X + 1),
}


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


def normaliser(q, k):
    return 1 / torch.einsum("bqd,bd->bq", q, k.sum(1))


IN_ONE_PRODUCT = {
    "a divisor": (
        lambda q, k, v: torch.einsum("bqd,bde,bq->bqe", q, k.mT @ v, normaliser(q, k)),
        lambda q, k, v: (q @ (k.mT @ v)) * normaliser(q, k)[..., None],
    ),
    "attention and a gate": (
        lambda q, k, v: torch.einsum("bqk,bkd,bqd->bqd", (q @ k.mT).softmax(-1), v, q.sigmoid()),
        lambda q, k, v: ((q @ k.mT).softmax(-1) @ v) * q.sigmoid(),
    ),
}


@pytest.mark.filterwarnings("ignore:The model has attention whose weights are held constant")
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("a divisor", AttnLRP),
        ("a divisor", GIM),
        ("a divisor", LibraGrad),
        ("attention and a gate", LibraGrad),
    ],
)
def test_the_factors_that_a_rule_does_not_hold_share_their_part(name, method):
    """In one product, as pytorch-fast-transformers' linear attention, or in several."""
    tokens = doubles(2, 4, 6)
    q, k, v = (doubles(6, 6, seed=seed) for seed in (1, 2, 3))

    def explained(attend):
        def model(x):
            x = x + F.scaled_dot_product_attention(x, x, x)
            return attend(F.elu(x @ q) + 1, F.elu(x @ k) + 1, x @ v).mean(1)

        return method(model).attribute(tokens, target=1)

    once, apart = IN_ONE_PRODUCT[name]
    torch.testing.assert_close(explained(once), explained(apart))


def test_three_factors_get_a_third_each():
    z = doubles(2, 4, seed=3)
    parts = relevance(lambda x, y, z: torch.einsum("bij,bjk,bi->bk", x, y, z), X, Y, z)
    third = torch.einsum("bij,bjk,bi->bk", X, Y, z).sum() / 3
    for part in parts:
        torch.testing.assert_close(part.sum(), third)


def test_a_product_with_a_constant_is_linear():
    (result,) = relevance(lambda x: weigh(x @ Y * 2), X)
    torch.testing.assert_close(result, by_autograd(lambda x: weigh(x @ Y * 2), X)[0])


@pytest.mark.parametrize("dim", [-1, 1])
def test_a_gated_linear_unit_is_the_product_that_it_hides(dim):
    def written_out(x):
        signal, gate = x.chunk(2, dim)
        return weigh(signal * gate.sigmoid())

    x = doubles(2, 4, 6)
    result = relevance(lambda x: weigh(F.glu(x, dim)), x)
    torch.testing.assert_close(result, relevance(written_out, x))
    with pytest.raises(ValueError, match="too many values to unpack"):
        relevance(lambda x: F.glu(x, dim), doubles(2, 5, 5))


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
def test_operands_without_inputs_have_no_share(name):
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
