"""LRP-gamma with both signs, as AttnLRP uses it for vision, equals its formula."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import AttnLRP, extend
from captum_transformer.account import Reason
from captum_transformer.errors import InvalidInputError
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import drawn, images, timm_vit, with_random_weights

GAMMAS = [0.05, 0.25, 1.0, 100.0]


def attended(x: Tensor) -> Tensor:
    """A method for Transformers asks for attention."""
    return x + F.scaled_dot_product_attention(x, x, x)


def net(bias: bool = True) -> nn.Sequential:
    layers = nn.Linear(6, 9, bias=bias), nn.ReLU(), nn.Linear(9, 4, bias=bias)
    model = with_random_weights(nn.Sequential(*layers))
    model[0].weight.data[0] = 0.0  # one unit whose output is its bias, or zero
    return model


def conv_net(bias: bool = True) -> nn.Sequential:
    first = nn.Conv2d(2, 6, 3, stride=2, padding=1, bias=bias)
    last = nn.ConvTranspose2d(6, 3, 2, stride=2, groups=3, bias=bias)
    model = with_random_weights(nn.Sequential(first, nn.ReLU(), last))
    model[0].weight.data[0] = 0.0
    return model


def vectors() -> Tensor:
    x = drawn(3, 6, seed=4)
    x[0, 2] = x[1, 0] = x[2, 5] = 0.0
    return x


def pictures() -> Tensor:
    x = drawn(3, 2, 6, 6, seed=4)
    x[:, :, ::2, 1] = 0.0
    return x


def matrix(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's weights as a matrix from all its inputs to all its outputs."""
    linear = copy.deepcopy(layer)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    return linear(basis).flatten(1).detach().T


def relevance_below(layer: nn.Module, x: Tensor, relevance: Tensor, gamma: float) -> Tensor:
    """The rule for one layer and one sample, term by term."""
    W, z = matrix(layer, x), layer(x[None]).flatten().detach()
    b = layer(torch.zeros_like(x)[None]).flatten().detach()
    below = torch.zeros(x.numel(), dtype=x.dtype)
    for j, r in enumerate(relevance.flatten()):
        if z[j] == 0:
            continue
        same, other = (W[j].clamp(min=0), W[j].clamp(max=0))[:: 1 if z[j] > 0 else -1]
        of_bias = b[j].clamp(min=0) if z[j] > 0 else b[j].clamp(max=0)
        flat = x.flatten()
        terms = flat.clamp(min=0) * (W[j] + gamma * same) + flat.clamp(max=0) * (
            W[j] + gamma * other
        )
        below += terms * r / (terms.sum() + b[j] + gamma * of_bias)
    return below.view(x.shape)


def by_formula(model: nn.Sequential, x: Tensor, target: int, gamma: float) -> Tensor:
    """From the score down to the input; a ReLU passes on what it gets."""
    explained = []
    for sample in x:
        states = [sample]
        for layer in model:
            states.append(layer(states[-1][None])[0].detach())
        relevance = torch.zeros_like(states[-1]).flatten()
        relevance[target] = states[-1].flatten()[target]
        for layer, state in zip(reversed(model), reversed(states[:-1]), strict=True):
            if not isinstance(layer, nn.ReLU):
                relevance = relevance_below(layer, state, relevance, gamma)
        explained.append(relevance)
    return torch.stack(explained)


def explained(model: nn.Module, x: Tensor, target: int, gamma: float) -> Tensor:
    rules = extend.gamma(gamma)
    return extend.GradientMethod(lambda x: model(x).flatten(1), rules).attribute(x, target)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("make", "x"), [(net, vectors()), (conv_net, pictures())])
def test_the_formula(make: Callable[..., Any], x: Tensor, gamma: float, bias: bool) -> None:
    model = make(bias)
    count = model(x)[0].numel()
    for target in range(0, count, count // 4):
        expected = by_formula(model, x, target, gamma)
        found = explained(model, x, target, gamma)
        assert_close(found, expected, relative=1e-9)
    assert (found != explained(model, x, target, 0.0)).any()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("make", "x"), [(net, vectors()), (conv_net, pictures())])
def test_without_biases_relevance_sums_up_to_the_score(
    make: Callable[..., Any], x: Tensor, gamma: float
) -> None:
    model = make(bias=False)
    found = explained(model, x, 2, gamma).flatten(1).sum(1)
    assert_close(found, model(x).flatten(1)[:, 2].detach(), relative=1e-12)


def test_a_large_gamma_leaves_the_terms_that_have_the_outputs_sign() -> None:
    model, x = nn.Sequential(nn.Linear(6, 4)).double(), vectors()
    terms = x * model[0].weight[1]
    z = model(x)[:, 1:2]
    kept = torch.where(terms * z > 0, terms, 0.0)
    bias = torch.where(model[0].bias[1] * z > 0, model[0].bias[1], 0.0)
    expected = kept * z / (kept.sum(1, keepdim=True) + bias)
    assert_close(explained(model, x, 1, 1e9), expected.detach(), relative=1e-8)


def test_batches_equal_single_samples() -> None:
    model, pixels, targets = timm_vit(), images(), [1, 4, 0]
    method = AttnLRP(model, gamma=0.25, conv_gamma=1.0)
    alone = [method.attribute(pixels[i : i + 1], t) for i, t in enumerate(targets)]
    assert_close(method.attribute(pixels, targets), torch.cat(alone), relative=1e-9)


def test_it_goes_to_attn_lrp_as_gamma_goes_to_zero() -> None:
    model, pixels = timm_vit(), images()
    plain = AttnLRP(model).attribute(pixels, 3)
    assert_close(AttnLRP(model, gamma=1e-13).attribute(pixels, 3), plain, relative=1e-9)
    assert_close(AttnLRP(model, conv_gamma=1e-13).attribute(pixels, 3), plain, relative=1e-9)
    assert torch.equal(AttnLRP(model, gamma=0.0, conv_gamma=None).attribute(pixels, 3), plain)
    for options in ({"gamma": 0.25}, {"conv_gamma": 0.25}):
        found = AttnLRP(model, **options).attribute(pixels, 3)
        assert (found - plain).abs().max() > 0.01 * plain.abs().max()


W, B, X = drawn(6, 5, seed=2), drawn(5, seed=3), drawn(2, 4, 6, seed=1)
POSITIONS = drawn(4, 5, seed=6)
SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ W + B,
    "bias first": lambda x: B + x @ W,
    "in place": lambda x: (x @ W).add_(B),
    "subtracted": lambda x: x @ W - (-B),
    "turned around": lambda x: B - x @ -W,
    "two halves": lambda x: x @ W + B / 2 + B / 2,
    "half within": lambda x: F.linear(x, W.T, B / 2) + B / 2,
    "addmm": lambda x: torch.addmm(B, x.flatten(0, 1), W).unflatten(0, (2, 4)),
    "negative alpha": lambda x: torch.addmm(
        -2 * B, x.flatten(0, 1), -W, alpha=-1, beta=-0.5
    ).unflatten(0, (2, 4)),
    "alpha of the bias": lambda x: torch.add(x @ W, B / 2, alpha=2),
    "baddbmm": lambda x: torch.baddbmm(B, x, W.expand(2, -1, -1)),
    "einsum": lambda x: torch.einsum("bnd,de->bne", x, W) + B.expand(2, 4, 5),
    "tensordot": lambda x: torch.tensordot(x, W, 1) + B,
    "convolution": lambda x: F.conv1d(x.mT, W.T[..., None], B).mT,
    "transposed convolution": lambda x: F.conv_transpose1d(x.mT, W[..., None], B).mT,
    "convolution and bias": lambda x: (F.conv1d(x.mT, W.T[..., None]) + B[:, None]).mT,
    "bias elsewhere": lambda x: ((x @ W).mT + B[:, None]).mT,
}


def of_spelling(function: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    before, after = drawn(6, 6, seed=7), drawn(5, 3, seed=8)

    def model(x: Tensor) -> Tensor:
        return F.linear(function(F.linear(x, before)), after.T).sum(1)

    method = AttnLRP(lambda x: model(attended(x)), gamma=0.25, conv_gamma=0.25)
    return method.attribute(x, 1)


@pytest.mark.parametrize("function", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_a_linear_layer(function: Callable[[Tensor], Tensor]) -> None:
    assert_close(function(X), F.linear(X, W.T, B), relative=1e-12)
    expected = of_spelling(lambda x: F.linear(x, W.T, B))
    assert_close(of_spelling(function), expected, relative=1e-9)


ADDED: dict[str, Callable[[Tensor], Tensor]] = {
    "positions": lambda x: torch.baddbmm(POSITIONS, x, W.expand(2, -1, -1)),
    "a signal": lambda x: torch.baddbmm(x[..., :5], x, W.expand(2, -1, -1)),
}
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "positions": lambda x: F.linear(x, W.T) + POSITIONS,
    "a signal": lambda x: x[..., :5] + F.linear(x, W.T),
}


@pytest.mark.parametrize("name", ADDED)
def test_an_added_term_that_is_not_a_bias_has_its_own_share(name: str) -> None:
    assert_close(of_spelling(ADDED[name]), of_spelling(APART[name]), relative=1e-9)


def test_weights_that_depend_on_the_inputs_have_the_uniform_rule() -> None:
    def model(x: Tensor) -> Tensor:
        weights = x[:, :2].flatten(1).view(-1, 6, 2)
        return (attended(x) @ weights).sum(1)

    x = drawn(2, 4, 6, seed=1)
    expected = AttnLRP(model).attribute(x, 1)
    assert torch.equal(AttnLRP(model, gamma=1.0, conv_gamma=1.0).attribute(x, 1), expected)


def test_learned_queries_are_no_layer() -> None:
    """A product with learned queries is attention, fused or written out, not a linear layer."""
    query = drawn(1, 2, 3, 4, seed=2)

    def model(x: Tensor, fused: bool) -> Tensor:
        x = x.unflatten(-1, (2, 4)).transpose(1, 2)
        if fused:
            found = F.scaled_dot_product_attention(query.expand(len(x), -1, -1, -1), x, x)
        else:
            found = (query @ x.mT / 2 + 0.1).softmax(-1) @ x
        return found.transpose(1, 2).flatten(1)

    x = drawn(2, 5, 8, seed=3)
    found = [AttnLRP(partial(model, fused=f), gamma=1.0).attribute(x, 1) for f in (True, False)]
    assert_close(*found, relative=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, x = net().to(dtype), vectors().to(dtype)
    found = explained(model, x, 2, 100.0)
    expected = explained(model.double(), x.double(), 2, 100.0)
    assert_close(found.double(), expected, relative=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("apart", [False, True])
def test_the_account_has_the_share_of_biases(apart: bool) -> None:
    model, x = net(), vectors()

    def scores(x: Tensor) -> Tensor:
        if not apart:
            return model(x)
        for layer in model:
            if isinstance(layer, nn.Linear):
                x = F.linear(x, layer.weight, layer.bias / 2) + layer.bias / 3 + layer.bias / 6
            else:
                x = layer(x)
        return x

    method = extend.GradientMethod(scores, extend.gamma(0.25))
    account = method.account(x, 1)
    of_inputs = method.attribute(x, 1).sum(1)
    biases = [part.amount for part in account.parts if part.taker == Reason.BIAS.value]
    (rest,) = (part.amount for part in account.parts if part.taker == Reason.REST.value)
    lost = model(x)[:, 1].detach() - of_inputs
    assert lost.abs().min() > 0.01
    assert_close(torch.stack(biases).sum(0), lost, relative=1e-9)
    assert rest.abs().max() < 1e-12


@pytest.mark.parametrize("gamma", [-0.1, math.inf, math.nan, "a"])
def test_gammas_that_are_refused(gamma: Any) -> None:
    for make in (
        partial(AttnLRP, timm_vit(), gamma=gamma),
        partial(AttnLRP, timm_vit(), conv_gamma=gamma),
    ):
        with pytest.raises(InvalidInputError, match=f"non-negative number, got {gamma!r}"):
            make()
    with pytest.raises(InvalidInputError, match="non-negative"):
        extend.gamma(gamma)


def places(model: nn.Module, where: Callable[[extend.Operation], bool]) -> Iterator[str]:
    seen: list[str] = []

    def noted(operation: extend.Operation) -> bool:
        chosen = where(operation)
        seen.extend([operation.module] * chosen)
        return chosen

    extend.GradientMethod(model, extend.gamma(0.1, where=noted)).attribute(images(), 1)
    yield from seen


def test_a_predicate_chooses_by_module_and_kind() -> None:
    model = timm_vit()
    mlps = [f"blocks.{i}.mlp.fc{j}" for i in (0, 1) for j in (1, 2)]
    assert list(places(model, lambda o: ".mlp." in o.module)) == mlps
    assert list(places(model, lambda o: o.kind is extend.Kind.CONV)) == ["patch_embed.proj"]
    every = list(places(model, lambda _: True))
    assert len(every) == 1 + 2 * 4 + 1
