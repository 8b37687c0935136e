"""The relevance rules against their formulas, written out."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from captum_transformer import TransformerAttribution
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.propagate import propagate
from captum_transformer.rules.relevance import TABLE
from captum_transformer.rules.relevance.linear import half_quotient
from captum_transformer.trace import traced_forward


def propagated(function, *inputs: Tensor, relevance: Tensor) -> list[Tensor]:
    with traced_forward(function, Arguments(inputs), keep=TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        result = propagate(forward.tape, {value: relevance}, TABLE, forward.values)
        return [result[v] for v in forward.values]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def alpha_beta(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    positive = (x[..., None, :] * weight).clamp(min=0)
    total = positive.sum(-1, keepdim=True)
    shares = torch.where(total > 0, positive / total, 0)
    return (shares * relevance[..., None]).sum(-2)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_follow_alpha_beta_and_the_bias_takes_nothing(bias):
    layer = nn.Linear(5, 4, bias=bias).double()
    x, relevance = doubles(3, 7, 5), doubles(3, 7, 4)
    (result,) = propagated(layer, x, relevance=relevance)
    torch.testing.assert_close(result, alpha_beta(x, layer.weight, relevance), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w.T).unflatten(0, x.shape[:2]),
        lambda x, w, b: x @ w.T,
        lambda x, w, b: torch.einsum("bnd,od->bno", x, w),
        lambda x, w, b: nn.functional.conv1d(x.mT * 1.0, w[..., None], b).mT,
    ],
    ids=["addmm", "matmul", "einsum", "conv1d"],
)
def test_every_product_with_weights_follows_alpha_beta(product):
    x, weight, bias, relevance = doubles(2, 3, 5), doubles(4, 5), doubles(4), doubles(2, 3, 4)
    (result,) = propagated(lambda x: product(x, weight, bias), x, relevance=relevance)
    torch.testing.assert_close(result, alpha_beta(x, weight, relevance), rtol=1e-6, atol=1e-7)


def test_where_nothing_is_positive_relevance_is_zero_not_noise():
    x, weight = torch.rand(64, 300) + 0.1, -torch.rand(8, 300) - 0.1
    sums = x @ weight.T, x.abs() @ weight.abs().T
    half, lost = half_quotient(torch.ones(64, 8), *sums, terms=300)
    assert not half.any()
    assert (lost == 1).all()
    (result,) = propagated(
        lambda x: nn.functional.linear(x, weight), x, relevance=torch.ones(64, 8)
    )
    assert not result.any()


def test_additions_are_normalised_sample_by_sample():
    a, b, relevance = doubles(4, 6, 3), doubles(4, 6, 3), doubles(4, 6, 3)
    left, right = propagated(lambda a, b: a * 1 + b * 1, a, b, relevance=relevance)
    for i in range(4):
        share_a, share_b = (t[i] * relevance[i] / (a + b)[i] for t in (a, b))
        total_a, total_b = share_a.sum().abs(), share_b.sum().abs()
        whole = relevance[i].sum()
        expected_a = share_a / share_a.sum() * whole * total_a / (total_a + total_b)
        expected_b = share_b / share_b.sum() * whole * total_b / (total_a + total_b)
        torch.testing.assert_close(left[i], expected_a, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(right[i], expected_b, rtol=1e-5, atol=1e-6)


def picked(x: Tensor) -> Tensor:
    """All tokens of all samples in one row, picked by their indices."""
    sample, token = torch.ones(x.shape[:2]).nonzero(as_tuple=True)
    return x[sample, token.flip(0)]


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x + x.flip(-1),
        lambda x: (x.transpose(0, 1) + x.flip(-1).transpose(0, 1)).transpose(0, 1),
        lambda x: (x.flatten(0, 1) + x.flip(-1).flatten(0, 1)).unflatten(0, x.shape[:2]),
        lambda x: (x.permute(1, 2, 0) + x.flip(-1).permute(1, 2, 0)).permute(2, 0, 1),
        lambda x: picked(x).add(picked(x).flip(-1)).unflatten(0, x.shape[:2]),
    ],
    ids=["samples first", "samples second", "merged with tokens", "samples last", "picked"],
)
def test_samples_are_known_in_any_layout(layout):
    x, relevance = doubles(3, 4, 5), doubles(3, 4, 5)
    (result,) = propagated(layout, x, relevance=relevance)
    for i in range(3):
        (alone,) = propagated(layout, x[i : i + 1], relevance=relevance[i : i + 1])
        torch.testing.assert_close(result[i : i + 1], alone)


def test_the_share_of_a_parameter_is_dropped():
    x, parameter, relevance = torch.rand(2, 3), torch.rand(2, 3), torch.rand(2, 3)
    (result,) = propagated(lambda x: x + parameter, x, relevance=relevance)
    ratio = result.sum(1) / relevance.sum(1)
    assert ((ratio > 0) & (ratio < 1)).all()


def test_products_of_two_signals_share_in_halves():
    a, b, relevance = doubles(2, 3), doubles(2, 3), doubles(2, 3)
    for result in propagated(lambda a, b: a * b, a, b, relevance=relevance):
        torch.testing.assert_close(result, relevance / 2)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(6),
        nn.RMSNorm(6),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-6) ** -0.5,
        lambda x: nn.functional.normalize(x, dim=-1),
        nn.functional.gelu,
        lambda x: 0.5 * x.softmax(-1),
        lambda x: nn.functional.dropout(x, 0.5),
    ],
)
def test_norms_and_activations_pass_relevance_on(norm):
    x, relevance = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    (result,) = propagated(norm, x, relevance=relevance)
    torch.testing.assert_close(result, relevance)


@pytest.mark.parametrize("lead", [1, 3])
def test_a_mean_of_what_may_be_no_features_is_refused(lead):
    x, relevance = torch.randn(lead, 3, 6), torch.randn(lead, 3, 6)
    with pytest.raises(UnsupportedOperationError, match="made of the whole rows of the signal"):
        propagated(lambda x: x - x.mean(-1, keepdim=True), x, relevance=relevance)


def test_pooling_and_sums_keep_the_relevance():
    x = torch.rand(2, 4, 6) + 0.1
    for pool in (lambda x: x.mean(1), lambda x: x.sum(1), lambda x: x.amax(1)):
        (result,) = propagated(pool, x, relevance=torch.ones(2, 6))
        torch.testing.assert_close(result.sum((1, 2)), torch.full((2,), 6.0))


@pytest.mark.parametrize("name", ["index_add", "index_add_"])
def test_sums_at_indices_share_by_their_terms(name):
    """As experts add to the tokens that are routed to them."""
    first, second, relevance = doubles(2, 5), doubles(3, 5), doubles(4, 5)

    def routed(first: Tensor, second: Tensor) -> Tensor:
        total = torch.zeros(4, 5, dtype=torch.float64)
        total = getattr(total, name)(0, torch.tensor([0, 2]), first[:2] * 1)
        return getattr(total, name)(0, torch.tensor([2, 1, 3]), second * 1)

    padded = torch.cat([first, torch.zeros(1, 5, dtype=torch.float64)])
    of_first, of_second = propagated(routed, padded, second, relevance=relevance)

    shared = relevance[2] / (first[1] + second[0])
    expected = torch.stack([relevance[0], first[1] * shared])
    torch.testing.assert_close(of_first[:2], expected, rtol=1e-6, atol=1e-8)
    expected = torch.stack([second[0] * shared, relevance[1], relevance[3]])
    torch.testing.assert_close(of_second, expected, rtol=1e-6, atol=1e-8)


def test_the_first_convolution_keeps_the_relevance_within_the_pixels_box():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 2, stride=2).double(), doubles(2, 3, 4, 4)
    relevance = torch.rand(2, 4, 2, 2, dtype=torch.float64)
    (result,) = propagated(conv, x, relevance=relevance)
    torch.testing.assert_close(result.sum((1, 2, 3)), relevance.sum((1, 2, 3)), rtol=1e-6, atol=0)


def test_two_scores_of_a_single_sample_are_no_scalars():
    a, b = doubles(3, 1), doubles(3, 1)
    together = propagated(lambda a, b: a * 1 + b * 1, a, b, relevance=torch.ones_like(a))
    alone = propagated(lambda a, b: a * 1 + b * 1, a[:1], b[:1], relevance=torch.ones_like(a[:1]))
    for batch, single in zip(together, alone, strict=True):
        torch.testing.assert_close(batch[:1], single)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_backbone_with_frozen_norms_hands_its_relevance_to_the_pixels(shift):
    def frozen() -> nn.Module:
        norm = FrozenBatchNorm2d(8)
        norm.weight.uniform_(0.5, 1.5)
        norm.running_var.uniform_(0.5, 1.5)
        norm.bias.fill_(shift)
        return norm

    stem = [nn.Conv2d(3, 8, 7, 2, 3, bias=False), frozen(), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    body = [nn.Conv2d(8, 8, 3, padding=1, bias=False), frozen(), nn.ReLU()]
    backbone = nn.Sequential(*stem, *body).double()
    pixels = doubles(2, 3, 16, 24)
    relevance = torch.rand(2, 8, 4, 6, dtype=torch.float64) * (backbone(pixels) > 0)

    (result,) = propagated(backbone, pixels, relevance=relevance.detach())

    kept = result.sum((1, 2, 3)) / relevance.sum((1, 2, 3))
    if shift:  # what is added takes its part
        assert ((kept > 0) & (kept < 1)).all()
    else:
        torch.testing.assert_close(kept, torch.ones_like(kept))
    assert result.flatten(1).ne(0).all()


@pytest.mark.parametrize("samples", [1, 2])
def test_weights_of_constant_values_are_no_layer_wherever_their_heads_lie(samples: int) -> None:
    heads, tokens, width = 2, 3, 4
    query, key, out = (doubles(8, 8) for _ in range(3))
    positions = doubles(tokens, tokens, width)  # those of values, as in Shaw et al. (2018)

    def attention(x: Tensor, *, beside: bool) -> Tensor:
        """Heads lie in a dimension of their own, or beside the samples."""
        parts = [F.linear(x, weight).unflatten(2, (heads, width)) for weight in (query, key)]
        q, k = (part.transpose(1, 2).flatten(0, int(beside)) for part in parts)
        weights = (q @ k.mT).softmax(-1)
        read = weights @ k + torch.einsum("...ij,ijd->...id", weights, positions)
        read = read.view(-1, heads, tokens, width).transpose(1, 2)
        return F.linear(read.flatten(2), out).sum(1)

    def relevance(x: Tensor, *, beside: bool) -> Tensor:
        method = TransformerAttribution(partial(attention, beside=beside), propagate_to_input=True)
        return method.attribute(x, 1)

    x = doubles(samples, tokens, 8)
    found = relevance(x, beside=True)
    torch.testing.assert_close(found, relevance(x, beside=False))
    torch.testing.assert_close(
        found, torch.cat([relevance(one, beside=True) for one in x.split(1)])
    )
