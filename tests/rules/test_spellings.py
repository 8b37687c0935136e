"""The same program, written differently, has the same relevance under rules for gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captum_transformer import AttnLRP, ConservativeLRP, extend
from captum_transformer.errors import (
    InvalidInputError,
    UnsupportedOperationError,
)
from tests.rules.by_hand import by_autograd, doubles, half, relevance, weigh

Function = Callable[[Tensor], Tensor]
X = doubles(2, 4, 6)
GAIN = doubles(6, seed=3)
COLUMN = torch.ones(1, 6, dtype=torch.float64)
EPS = 1e-5


def conservative(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What ConservativeLRP says of the sum of a sample's outputs, without attention."""
    method = ConservativeLRP(lambda *x: function(*x).flatten(1).sum(1), attention_rule=False)
    return method.attribute(inputs)


PASSES = {"AttnLRP": relevance, "ConservativeLRP": conservative}


def inverse(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


NORMS: dict[str, Function] = {
    "signal first": lambda x: (x * inverse(x)) * GAIN,
    "gain first": lambda x: x * (inverse(x) * GAIN),
    "gain by einsum": lambda x: x * torch.einsum("bnl,d->bnd", inverse(x), GAIN),
    "gain by a product": lambda x: x * (inverse(x) @ GAIN[None]),
    "gain by a linear layer": lambda x: x * F.linear(inverse(x), GAIN[:, None]),
    "expanded": lambda x: x * inverse(x).expand_as(x) * GAIN,
    "moved": lambda x: x * inverse(x).squeeze(-1)[..., None] * GAIN,
    "by einsum": lambda x: torch.einsum("bnd,bn,d->bnd", x, inverse(x)[..., 0], GAIN),
    "by a diagonal matrix": lambda x: torch.diag_embed(inverse(x)[..., 0]) @ x * GAIN,
    "added to nothing": lambda x: torch.addcmul(torch.zeros_like(GAIN), x, inverse(x)) * GAIN,
    "gain over root": lambda x: x * (GAIN / (x.square().mean(-1, keepdim=True) + EPS).sqrt()),
    "quotient": lambda x: (
        torch.div(x, other=(x.square().mean(-1, keepdim=True) + EPS).sqrt()) * GAIN
    ),
    "root of a quotient": lambda x: (
        x * (1 / (x.square().mean(-1, keepdim=True) + EPS)).sqrt() * GAIN
    ),
    "by size": lambda x: x / (x.norm(dim=-1, keepdim=True).square() / 6 + EPS).sqrt() * GAIN,
    "solved for": lambda x: (
        torch.linalg.solve_triangular(torch.diag_embed(1 / inverse(x)[..., 0]), x, upper=True)
        * GAIN
    ),
    "in place": lambda x: (x * 1.0).mul_(inverse(x)).mul_(GAIN),
    "other dtype": lambda x: (x.float() * inverse(x.to(GAIN))).to(x) * GAIN,
}


@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_written_in_python_is_the_fused_one(name, method):
    def fused(x: Tensor) -> Tensor:
        return weigh(F.rms_norm(x, (6,), GAIN, EPS).tanh())

    (expected,) = PASSES[method](fused, X)
    (found,) = PASSES[method](lambda x: weigh(NORMS[name](x).tanh()), X)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name == "other dtype" else {}
    torch.testing.assert_close(found, expected, **tolerance)


def over(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Normalised over some dimensions, what divides the signal held constant."""
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + EPS).sqrt().detach()


def local(x: Tensor) -> Tensor:
    squares = F.pad(x.square(), (0, 0, 1, 1))
    means = (squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]) / 3
    return x / (1 + 0.5 * means).pow(0.75).detach()


STATISTICS: dict[str, tuple[Function, Function]] = {
    "instance norm": (F.instance_norm, lambda x: over(x, (2,))),
    "instance norm with weights": (
        nn.InstanceNorm1d(4, affine=True).double(),
        lambda x: over(x, (2,)),
    ),
    "instance norm by position": (
        lambda x: torch.instance_norm(x, None, None, None, None, True, 0.1, EPS, False),
        lambda x: over(x, (2,)),
    ),
    "statistics of the batch": (
        lambda x: torch.cat([F.batch_norm(one, None, None, training=True) for one in x.split(1)]),
        lambda x: over(x, (2,)),
    ),
    "running statistics": (
        lambda x: F.batch_norm(x, GAIN[:4], GAIN[:4].abs(), GAIN[:4]),
        lambda x: (x - GAIN[:4, None]) / (GAIN[:4, None].abs() + EPS).sqrt() * GAIN[:4, None],
    ),
    "layer norm with its statistics": (
        lambda x: torch.native_layer_norm(x, (6,), None, None, EPS)[0],
        lambda x: over(x, (2,)),
    ),
    "several dimensions": (lambda x: F.layer_norm(x, (4, 6)), lambda x: over(x, (1, 2))),
    "a whole number as shape": (nn.LayerNorm(6).double(), lambda x: over(x, (2,))),
    "normalize": (
        lambda x: F.normalize(x, dim=1),
        lambda x: x / x.norm(dim=1, keepdim=True).detach(),
    ),
    "local response norm": (lambda x: F.local_response_norm(x, 3, alpha=0.5), local),
}


@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize("name", STATISTICS)
def test_what_a_norm_divides_by_is_held(name, method):
    norm, by_hand = STATISTICS[name]
    (found,) = PASSES[method](lambda x: weigh(norm(x)), X)
    (expected,) = by_autograd(lambda x: weigh(by_hand(x)), X)
    torch.testing.assert_close(found, expected)


def test_weights_of_a_norm_that_depend_on_the_inputs_are_refused():
    def adapted(x: Tensor, style: Tensor) -> Tensor:
        x = F.scaled_dot_product_attention(x, x, x)
        return F.layer_norm(x, (6,), style.mean(0)).flatten(1)

    for method in (AttnLRP(adapted), ConservativeLRP(adapted, attention_rule=False)):
        with pytest.raises(UnsupportedOperationError, match=r"weights depend.*Normalise without"):
            method.attribute((X[:1], doubles(1, 6)), 5)


SILU: dict[str, Function] = {
    "quotient": lambda x: x / (1 + torch.exp(-x)),
    "reciprocal": lambda x: x * (1 + torch.exp(-x)).reciprocal(),
    "one over": lambda x: x * (1 / (1 + torch.exp(-x))),
    "power": lambda x: x * (1 + torch.exp(-x)) ** -1,
    "power by name": lambda x: torch.pow(1 + torch.exp(-x), exponent=-1) * x,
    "product": lambda x: torch.sigmoid(x) * x,
    "keyword": lambda x: torch.mul(input=x, other=torch.sigmoid(x)),
    "einsum": lambda x: torch.einsum("bnd,bnd->bnd", x, x.sigmoid()),
    "added to nothing": lambda x: torch.addcmul(torch.zeros_like(x), x, x.sigmoid()),
    "multiple": lambda x: 2 * x / (2 + 2 * torch.exp(-x)),
    "exponentials": lambda x: x * (torch.exp(x) / (1 + torch.exp(x))),
    "in place": lambda x: (x * 1.0).mul_(x.sigmoid()),
    "divided in place": lambda x: (x * 1.0).div_(1 + torch.exp(-x)),
}


@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize("name", SILU)
def test_an_activation_written_in_python_is_the_fused_one(name, method):
    (expected,) = PASSES[method](lambda x: weigh(F.silu(x)), X)
    (found,) = PASSES[method](lambda x: weigh(SILU[name](x)), X)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", PASSES)
def test_a_reciprocal_that_divides_no_signal_counts(method):
    x = X.abs() + 0.5
    (found,) = PASSES[method](lambda x: weigh(1 / x), x)
    sign = 1 if method == "AttnLRP" else -1
    torch.testing.assert_close(found, sign * weigh(1 / x))


Y = doubles(2, 4, 6, seed=5)
CHOICES_AND_LENGTHS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": torch.maximum,
    "max": torch.max,
    "fmin": torch.fmin,
    "where": lambda x, y: torch.where(x.detach() > 0, x, y),
    "clamp": lambda x, y: torch.clamp(x, min=y),
    "clamp from above": lambda x, y: x.clip(max=y),
    "cdist": torch.cdist,
    "dist": lambda x, y: torch.stack([torch.dist(a, b) for a, b in zip(x, y, strict=True)]),
    "distance": lambda x, y: F.pairwise_distance(x, y, eps=0.0),
    "norm of a difference": lambda x, y: (x - y).norm(dim=-1),
    "taxicab": lambda x, y: torch.linalg.vector_norm(x - y, 1, dim=-1),
}


@pytest.mark.parametrize("function", CHOICES_AND_LENGTHS.values(), ids=CHOICES_AND_LENGTHS)
def test_choices_and_lengths_of_two_signals_conserve(function):
    """They scale with both signals, so the gradient is all that is needed."""
    found = relevance(lambda x, y: weigh(function(x, y)), X, Y)
    torch.testing.assert_close(found, by_autograd(lambda x, y: weigh(function(x, y)), X, Y))
    torch.testing.assert_close(sum(found).sum(), weigh(function(X, Y)).sum())


def sixth(x: Tensor) -> Tensor:
    """The same value with a sixth of the gradient."""
    return x / 6 + (x * 5 / 6).detach()


def test_each_entry_of_a_product_along_a_dimension_gets_its_part():
    (found,) = relevance(lambda x: weigh(x.prod(-1)), X)
    (expected,) = by_autograd(lambda x: weigh(sixth(x).prod(-1)), X)
    torch.testing.assert_close(found, expected)
    (found,) = relevance(lambda x: weigh(x.cumprod(-1)), X)
    torch.testing.assert_close(found.sum(), weigh(X.cumprod(-1)).sum())


@pytest.mark.parametrize("method", ["var", "std"])
def test_a_variance_is_the_mean_of_squares_that_it_is_written_as(method):
    def written(x: Tensor) -> Tensor:
        variance = (x - x.mean(-1, keepdim=True)).square().mean(-1)
        return variance if method == "var" else variance.sqrt()

    (expected,) = relevance(lambda x: weigh(written(x)), X)
    (found,) = relevance(lambda x: weigh(getattr(x, method)(-1, correction=0)), X)
    (both,) = relevance(
        lambda x: weigh(getattr(torch, f"{method}_mean")(x, -1, correction=0)[0]), X
    )
    torch.testing.assert_close(found.sum(), expected.sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(both, found)


def test_means_beside_variances_are_means():
    (found,) = relevance(lambda x: weigh(torch.var_mean(x, -1)[1]), X)
    torch.testing.assert_close(found, by_autograd(lambda x: weigh(x.mean(-1)), X)[0])


STACKS: dict[str, tuple[Function, Function]] = {
    "hstack": (lambda x: torch.hstack([x, x * 2]), lambda x: torch.cat([x, x * 2], 1)),
    "vstack": (lambda x: torch.vstack([x, x * 2])[2:], lambda x: x * 2),
    "column_stack": (lambda x: torch.column_stack([x, x * 2]), lambda x: torch.cat([x, x * 2], 1)),
    "lerp_": (lambda x: (x * 1.0).lerp_(x * 3, 0.25), lambda x: x * 1.5),
    "addcdiv_": (
        lambda x: (x * 1.0).addcdiv_(x * 2, 1 + GAIN**2),
        lambda x: x + 2 * x / (1 + GAIN**2),
    ),
}


@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize("name", STACKS)
def test_functions_of_others_are_what_they_are_written_as(name, method):
    written, plain = STACKS[name]
    (found,) = PASSES[method](lambda x: weigh(written(x)), X)
    torch.testing.assert_close(found, by_autograd(lambda x: weigh(plain(x)), X)[0])


@pytest.mark.parametrize("make", [AttnLRP, ConservativeLRP])
def test_a_norm_of_which_the_statistics_are_not_known_is_refused(make):
    @extend.operation("input", extend.Kind.NORM)
    def norm(x: Tensor) -> Tensor:
        return x / x.amax(-1, keepdim=True)

    explain = make(lambda x: norm(F.scaled_dot_product_attention(x, x, x)).flatten(1))
    with pytest.raises(UnsupportedOperationError, match="what it divides by is not known"):
        explain.attribute(X, target=0)


def test_the_product_with_a_signal_as_addend_is_a_sum_and_a_product():
    def fused(b: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return weigh(torch.baddbmm(b, x, y.mT, beta=0.5, alpha=2.0))

    b = doubles(2, 4, 4, seed=6)
    found = relevance(fused, b, X, Y)
    expected = by_autograd(lambda b, x, y: weigh(b / 2 + 2 * half(x) @ half(y).mT), b, X, Y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sum(part.sum() for part in found), fused(b, X, Y).sum())


def test_places_share_with_what_is_read_there():
    """Reading at a place is a product of the signal and of weights that the place makes."""
    field, grid = doubles(2, 1, 4, 4, seed=6), X[:, None, :, :2].tanh() * 0.7

    def weights(grid: Tensor) -> Tensor:
        ones = torch.eye(16, dtype=grid.dtype).view(1, 16, 4, 4).expand(2, -1, -1, -1)
        return F.grid_sample(ones, grid, align_corners=False)[:, :, 0]

    def by_hand(field: Tensor, grid: Tensor) -> Tensor:
        return torch.einsum("bp,bpn->bn", half(field).flatten(1), half(weights(grid)))

    found = relevance(
        lambda f, g: weigh(F.grid_sample(f, g, align_corners=False)[:, 0, 0]), field, grid
    )
    expected = by_autograd(lambda f, g: weigh(by_hand(f, g)), field, grid)
    torch.testing.assert_close(found, expected)


def unknown(x: Tensor) -> Tensor:
    """No pass knows what these do."""
    return torch.linalg.eigvalsh(x @ x.mT)


@pytest.mark.parametrize(
    "method", [AttnLRP, lambda model: ConservativeLRP(model, attention_rule=False)]
)
def test_what_the_table_lacks_is_refused_where_the_score_depends_on_it(method):
    class Model(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:
            tokens = super().forward(x, x, x)[0]
            return torch.cat([tokens.flatten(1), unknown(tokens)], 1)

    explain = method(Model(6, 2, batch_first=True).double())
    with pytest.raises(UnsupportedOperationError, match=r"`linalg_eigvalsh`.*not in the table"):
        explain.attribute(X, target=24)
    assert explain.attribute(X, target=23).any()


def test_the_plain_gradient_is_right_for_unknown_functions_too():
    def model(x: Tensor) -> Tensor:
        return unknown(F.scaled_dot_product_attention(x, x, x))

    plain = ConservativeLRP(model, attention_rule=False, layer_norm_rule=False)
    composed = extend.GradientMethod(model, {})
    (expected,) = by_autograd(lambda x: model(x)[:, 2], X)
    for method in (plain, composed):
        torch.testing.assert_close(method.attribute(X, target=2), expected)
    with pytest.raises(UnsupportedOperationError, match="not in the table"):
        extend.GradientMethod(model, extend.LN).attribute(X, target=2)


def test_what_makes_one_entry_of_two_signals_in_an_unknown_way_is_refused():
    explain = AttnLRP(lambda x, y: F.scaled_dot_product_attention(x, x, x.exp() ** y).flatten(1))
    with pytest.raises(UnsupportedOperationError, match=r"`pow`.*shares of several signals"):
        explain.attribute((X, Y), target=0)


@pytest.mark.parametrize("activation", [F.gelu, torch.sigmoid, F.relu6, torch.exp])
def test_rules_hold_in_what_a_checkpoint_computes_again(activation):
    first, last = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()

    def inner(x: Tensor) -> Tensor:
        return last(activation(first(x)))

    def model(x: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x)
        return checkpoint(inner, x, use_reentrant=False).flatten(1)

    expected = AttnLRP(lambda x: inner(x + F.scaled_dot_product_attention(x, x, x)).flatten(1))
    found = AttnLRP(model).attribute(X, target=0)
    torch.testing.assert_close(found, expected.attribute(X, target=0), rtol=0, atol=0)


def test_probabilities_are_held_where_they_weight_constants_too():
    relative, head = doubles(4, 4, 6, seed=8), doubles(6, seed=9)

    def apart(x):
        weights = (x @ x.mT).softmax(-1)
        return (weights @ x + torch.einsum("bnm,nmd->bnd", weights, relative)) @ head

    def together(x):
        weights = (x @ x.mT).softmax(-1)
        return torch.einsum("bnm,bnmd->bnd", weights, x[:, None] + relative) @ head

    found, expected = (ConservativeLRP(model).attribute(X, target=1) for model in (apart, together))
    torch.testing.assert_close(found, expected)
    with pytest.raises(InvalidInputError, match="such as attention weights in"):
        ConservativeLRP(lambda x: (x @ x.mT).softmax(-1) @ doubles(4, 3)[..., 0]).attribute(X, 1)
