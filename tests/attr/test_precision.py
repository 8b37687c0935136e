"""Half precision, mixed precision, and inputs at the edge."""

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_transformer import ConservativeLRP
from tests.attr.golden import load_case
from tests.attr.golden.models import from_embeddings
from tests.attr.subjects import (
    FLOW_METHODS,
    MAGNIFY_ROUNDING,
    METHODS,
    SUBJECTS,
    as_tuple,
    assert_close,
    attributed,
    subject,
)
from tests.attr.tiny_models import encoder, images

MIXED = (
    "timm ViT",
    "timm Swin",
    "BERT, eager",
    "GPT-2",
    "nn.TransformerEncoder",
    "nn.TransformerEncoder, norm first",
    "pixels and ids",
)


def correlation(a: Tensor, b: Tensor) -> float:
    pair = torch.stack([a.flatten().double(), b.flatten().double()])
    return float(torch.corrcoef(pair)[0, 1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MIXED)
def test_bfloat16_model_is_close_to_full_precision(name: str, method: str) -> None:
    given = subject(name).to(torch.bfloat16)

    for attribution, exact, tensor in zip(
        as_tuple(given.attribute(METHODS[method])),
        attributed(name, method),
        as_tuple(given.inputs),
        strict=True,
    ):
        assert attribution.isfinite().all()
        assert attribution.any()
        if method not in MAGNIFY_ROUNDING:
            assert correlation(attribution, exact) > 0.98
        if tensor.is_floating_point():
            assert attribution.dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MIXED)
def test_autocast_is_close_to_full_precision(name: str, method: str) -> None:
    given = subject(name).to(torch.float32)

    with torch.autocast("cpu", torch.bfloat16):
        mixed = as_tuple(given.attribute(METHODS[method]))

    for attribution, exact in zip(mixed, attributed(name, method), strict=True):
        assert attribution.dtype == torch.float32
        assert attribution.shape == exact.shape
        assert attribution.isfinite().all()
        if method not in MAGNIFY_ROUNDING:
            assert correlation(attribution, exact) > 0.98


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_single_is_close_to_double_precision(name: str, method: str) -> None:
    given = subject(name).to(torch.float32)

    for attribution, exact in zip(
        as_tuple(given.attribute(METHODS[method])), attributed(name, method), strict=True
    ):
        assert_close(attribution, exact, 0.05 if method in MAGNIFY_ROUNDING else 1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-20], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm ViT", "torchvision ViT"])
def test_constant_images_in_single_are_close_to_double_precision(
    name: str, method: str, value: float
) -> None:
    constant = subject(name).map(lambda t: torch.full_like(t, value)).samples([0])

    expected = constant.attribute(METHODS[method])
    found = constant.to(torch.float32).attribute(METHODS[method])
    assert expected.isfinite().all()
    assert_close(found.double(), expected, 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_tiny_scores_are_as_those_of_small_ones(method: str) -> None:
    given = subject("timm ViT").to(torch.float32)

    def scaled(scale: float) -> Tensor:
        explained = METHODS[method](lambda x: given.model(x) * scale)
        result = explained.attribute(given.inputs, given.target).double()
        assert result.any()
        return result / result.abs().max()

    assert_close(scaled(1e-35), scaled(1e-20), 1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm ViT, registers", "timm Swin", "Transformers ViT"])
def test_black_images_stay_finite_in_double_precision(name: str, method: str) -> None:
    black = subject(name).map(torch.zeros_like).samples([0])

    assert black.attribute(METHODS[method]).isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1.0], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_constant_embeddings_and_ids_stay_finite(method: str, value: float) -> None:
    for name in ("BERT", "nn.TransformerEncoder", "pixels and ids"):
        given = subject(name)
        inputs = tuple(torch.full_like(t, int(value)) for t in as_tuple(given.inputs))
        result = METHODS[method](given.model).attribute(inputs, given.target, given.extra)
        assert all(attribution.isfinite().all() for attribution in result), name


@pytest.mark.parametrize("method", METHODS)
def test_in_a_model_without_weights_nothing_is_relevant_and_attention_is_even(method: str) -> None:
    given = subject("timm ViT")
    for parameter in given.model.parameters():
        parameter.data.zero_()

    found = given.attribute(METHODS[method])
    if method in ("AttentionRollout", "RawAttention"):
        torch.testing.assert_close(found, found[0, 0, 0, 0].expand_as(found))
        assert found[0, 0, 0, 0] > 0
    else:
        assert not found.any()


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_that_is_not_finite_spares_the_others(method: str) -> None:
    given = subject("timm ViT")
    pixels = given.inputs.clone()
    pixels[1, 0, 0, 0] = torch.nan

    result = METHODS[method](given.model).attribute(pixels, given.target)

    (expected,) = attributed("timm ViT", method)
    assert_close(result[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("same_class", [True, False], ids=["one class", "several classes"])
@pytest.mark.parametrize("method", METHODS)
def test_a_head_of_tiny_weights_is_not_lost_beside_its_bias(method: str, same_class: bool) -> None:
    """In single precision its product can't be had from its output, in which the bias is all."""
    given = subject("timm ViT")
    head = given.model.head
    with torch.no_grad():
        head.weight.mul_(1e-9 / head.weight.std())
        head.bias.fill_(1.0)
    target = 2 if same_class else torch.tensor([3, 0, 3])
    expected, found = (
        METHODS[method](given.to(dtype).model).attribute(given.inputs.to(dtype), target)
        for dtype in (torch.float64, torch.float32)
    )
    assert_close(found.double(), expected, relative=0.01)
    if method in ("AttnLRP", "ConservativeLRP", "gradient x input"):
        with torch.no_grad():
            head.weight.mul_(1e9)
        whole = METHODS[method](given.model).attribute(given.inputs.float(), target)
        assert_close(found * 1e9, whole, relative=1e-4)


@pytest.mark.parametrize("method", FLOW_METHODS)
def test_large_inputs_in_single_are_close_to_double_precision(method: str) -> None:
    given = subject("timm ViT").map(lambda t: 1e4 * t)

    expected = given.attribute(METHODS[method])
    assert expected.isfinite().all()
    found = given.to(torch.float32).attribute(METHODS[method])
    assert_close(found.double(), expected, 1e-4)


# Conservation.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_relevance_is_conserved_without_biases(attention: str, gamma: float) -> None:
    case = from_embeddings(load_case("icml22_hf_conservative", attention))
    explain = ConservativeLRP(case.model, gamma=gamma, gamma_keeps_output=True)
    for target in case.targets:
        relevance, delta = explain.attribute(case.inputs, target, return_convergence_delta=True)
        scores = case.model(case.inputs).logits
        score = torch.stack([scores[(i, *place)] for i, place in enumerate(target)]).detach()
        assert_close(relevance.sum((1, 2)), score)
        assert delta.abs().max() < 1e-10


def test_relevance_is_not_conserved_without_the_rules() -> None:
    case = load_case("icml22_hf_conservative")
    for options in ({"attention_rule": False}, {"layer_norm_rule": False}):
        _, delta = ConservativeLRP(case.model, **options).attribute(
            case.inputs, case.targets[0], return_convergence_delta=True
        )
        assert delta.abs().max() > 0.1


@pytest.mark.parametrize("norm_first", [False, True])
def test_relevance_is_conserved_through_an_encoder_without_biases(norm_first: bool) -> None:
    model = encoder(norm_first=norm_first)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    given = subject("nn.TransformerEncoder")
    _, delta = ConservativeLRP(model).attribute(
        given.inputs, given.target, given.extra, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-4  # the norms' epsilon


@pytest.mark.parametrize(
    "method",
    [ConservativeLRP, partial(ConservativeLRP, gamma=0.1, gamma_keeps_output=True)],
    ids=["plain", "gamma"],
)
@pytest.mark.parametrize("name", ["timm ViT", "BERT", "pixels and ids"])
def test_convergence_delta_is_relevance_minus_score(name: str, method: Any) -> None:
    given = subject(name)
    explain = method(given.model)
    attribution, delta = explain.attribute(
        given.inputs, given.target, given.extra, return_convergence_delta=True
    )
    output = given.model(*as_tuple(given.inputs), *(given.extra or ()))
    output = getattr(output, "logits", output).detach()
    score = output[range(3), given.target]
    total = sum(a.flatten(1).sum(1) for a in as_tuple(attribution))

    assert delta.shape == (3,)
    assert_close(delta, total - score)
    assert_close(explain.compute_convergence_delta(attribution, score), delta)
    assert isinstance(attribution, tuple) == isinstance(given.inputs, tuple)
    assert_close(attribution, given.attribute(method), relative=0)


def test_convergence_delta_needs_one_score_per_sample() -> None:
    explain = ConservativeLRP(subject("timm ViT").model)

    with pytest.raises(AssertionError, match="one score for each of the 3 samples"):
        explain.compute_convergence_delta(images(), torch.zeros(2))


@pytest.mark.parametrize("method", ["TransformerAttribution", "PartialLRP", "full LRP"])
def test_a_layer_that_runs_in_single_precision_among_doubles(method: str) -> None:
    model = subject("timm ViT").model

    def with_island(pixels: Tensor) -> Tensor:
        tokens = model.forward_features(pixels)[:, 0]
        weight, bias = model.head.weight.float(), model.head.bias.float()
        return torch.nn.functional.linear(tokens.float(), weight, bias).double()

    expected = METHODS[method](model).attribute(images(), 2)
    assert_close(METHODS[method](with_island).attribute(images(), 2), expected, 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_doubles_are_masked_before_they_become_singles(method: str) -> None:
    model = subject("timm ViT").model
    lowest = torch.finfo(torch.float64).min

    def masked(pixels: Tensor) -> Tensor:
        scores = model(pixels)
        hidden = torch.arange(scores.shape[1]) == 0
        return torch.where(hidden, lowest, scores).masked_fill(hidden, lowest).float()

    expected = METHODS[method](model).attribute(images(), 2)
    assert_close(METHODS[method](masked).attribute(images(), 2), expected, 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_magnify_rounding_warn_in_half_precision(method: str) -> None:
    def warned(dtype: torch.dtype) -> bool:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            subject("BERT, eager").to(dtype).attribute(METHODS[method])
        return any("magnifies rounding" in str(warning.message) for warning in found)

    assert warned(torch.bfloat16) == (method in MAGNIFY_ROUNDING)
    assert not warned(torch.float32)


def test_methods_that_say_nothing_in_half_precision_are_close() -> None:
    for method in METHODS.keys() - MAGNIFY_ROUNDING:
        low, same = (subject("BERT, eager").to(torch.bfloat16) for _ in range(2))
        pairs = zip(
            as_tuple(low.attribute(METHODS[method])),
            as_tuple(same.to(torch.float32).attribute(METHODS[method])),
            strict=True,
        )
        for found, exact in pairs:
            assert (found.float() - exact).norm() < 0.05 * exact.norm()
