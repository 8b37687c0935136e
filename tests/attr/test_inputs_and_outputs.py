"""Captum's calling conventions: structure, shapes, types, tokens, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
)
from captum_transformer.errors import (
    AmbiguousOutputError,
)
from tests.attr.subjects import (
    FLOW_METHODS,
    METHODS,
    POOLED,
    SUBJECTS,
    as_tuple,
    assert_close,
    attributed,
    subject,
)
from tests.attr.tiny_models import bert, images, timm_vit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_result_has_the_form_of_the_inputs(name: str, method: str) -> None:
    for attribution, tensor in zip(
        attributed(name, method), as_tuple(subject(name).inputs), strict=True
    ):
        assert attribution.shape == tensor.shape
        assert attribution.is_contiguous()
        assert attribution.device == tensor.device
        assert attribution.isfinite().all()
        assert not attribution.requires_grad
        assert attribution.grad_fn is None
        if tensor.is_floating_point():
            assert attribution.dtype == tensor.dtype
        else:
            assert attribution.is_floating_point()


@pytest.mark.parametrize("method", METHODS)
def test_tuple_in_tuple_out(method: str) -> None:
    given = subject("timm ViT")
    explain = METHODS[method](given.model)
    single = (given.inputs,)

    assert isinstance(explain.attribute(given.inputs, 1), Tensor)
    assert isinstance(explain.attribute(single, 1), tuple)
    assert isinstance(explain.attribute_tokens(given.inputs, 1), Tensor)
    assert isinstance(explain.attribute_tokens(single, 1), tuple)
    assert isinstance(explain.attribute_targets(given.inputs, [1])[0], Tensor)
    assert isinstance(explain.attribute_targets(single, [1])[0], tuple)
    assert torch.equal(explain.attribute(single, 1)[0], explain.attribute(given.inputs, 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_tokens_are_those_that_an_input_was_turned_into(name: str, method: str) -> None:
    given = subject(name)
    tokens = as_tuple(given.attribute_tokens(METHODS[method]))

    assert [t.shape for t in tokens] == [(3, count) for count in given.tokens]
    assert all(t.is_contiguous() and t.isfinite().all() for t in tokens)


def patches(pixels: Tensor, size: int) -> Tensor:
    """Sums over square patches, row by row: ``(samples, patches)``."""
    return pixels.unfold(2, size, size).unfold(3, size, size).sum((1, 4, 5)).flatten(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm ViT", 4),
        ("timm ViT, registers", 4),
        ("timm DeiT, distilled", 4),
        ("timm Swin", 2),
        ("torchvision ViT", 4),
        ("Transformers ViT", 4),
    ],
)
def test_tokens_sum_up_their_pixels(name: str, size: int, method: str) -> None:
    (pixels,) = attributed(name, method)
    tokens = subject(name).attribute_tokens(METHODS[method])

    if method == "full LRP":
        # Relevance that the position embedding takes is dropped on the way to the pixels.
        assert tokens.shape == patches(pixels, size).shape
    else:
        assert_close(patches(pixels, size), tokens)


@pytest.mark.parametrize("method", FLOW_METHODS)
def test_patches_are_filled_evenly(method: str) -> None:
    (pixels,) = attributed("timm ViT", method)
    coarse = pixels[:, :1, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)

    assert_close(pixels, coarse.expand_as(pixels))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["BERT", "BERT, eager", "GPT-2"])
def test_tokens_of_ids_are_the_ids(name: str, method: str) -> None:
    (attribution,) = attributed(name, method)

    assert_close(attribution, subject(name).attribute_tokens(METHODS[method]))


@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_embeddings_sum_over_features(method: str) -> None:
    (attribution,) = attributed("nn.TransformerEncoder", method)

    tokens = subject("nn.TransformerEncoder").attribute_tokens(METHODS[method])
    assert_close(attribution.sum(-1), tokens)


@pytest.mark.parametrize("method", FLOW_METHODS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_flow_is_negative_for_pooled_tokens_alone(name: str, method: str) -> None:
    compared = name in POOLED and method.startswith(("Transformer", "Generic"))
    assert any((attribution < 0).any() for attribution in attributed(name, method)) == compared


def test_rollout_with_normalised_rows_hands_over_all_of_the_output() -> None:
    for name in ("BERT", "GPT-2", "nn.TransformerEncoder", "pixels and ids"):
        rollout = partial(AttentionRollout, with_identity=True)
        total = sum(a.flatten(1).sum(1) for a in as_tuple(subject(name).attribute(rollout)))
        expected = torch.ones(3, dtype=torch.float64)
        if name == "pixels and ids":
            assert (total < expected).all()  # the learned token keeps its part
        else:
            assert_close(total, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_of_other_widths(dtype: torch.dtype) -> None:
    given = subject("BERT")
    result = GenericAttentionRelevance(given.model).attribute(
        given.inputs.to(dtype), given.target, given.extra
    )

    assert_close(result, attributed("BERT", "GenericAttentionRelevance"))


@pytest.mark.parametrize("method", METHODS)
def test_additional_forward_args_in_all_forms(method: str) -> None:
    given = subject("timm ViT")

    def scaled(pixels: Tensor, factor: Any = 1.0, *rest: Any) -> Tensor:
        assert all(r is None or isinstance(r, str) for r in rest)
        return given.model(pixels * factor)

    expected = METHODS[method](lambda x: given.model(x * 2.0)).attribute(given.inputs, 1)
    for extra in (2.0, (2.0,), (2.0, None), (torch.tensor(2.0), "note")):
        result = METHODS[method](scaled).attribute(given.inputs, 1, extra)
        assert_close(result, expected)


@dataclass
class Outputs:
    logits: Tensor
    features: Tensor


def _vit_that_returns(wrap: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    model = timm_vit()
    return lambda pixels: wrap(model(pixels))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: transformers.utils.ModelOutput(logits=y, hidden_states=(y, y)),
        lambda y: {"logits": y, "loss": y.sum(), "features": y},
        lambda y: {"scores": y},
        lambda y: {"scores": y, "loss": y.sum()},
        lambda y: {"scores": y, "count": torch.arange(3)},
        lambda y: (y,),
        lambda y: [y, y.sum()],
        lambda y: (y, y[:, :1]),
        lambda y: Outputs(logits=y, features=y),
    ],
    ids=[
        "ModelOutput",
        "dict",
        "only",
        "loss",
        "integers",
        "tuple",
        "list",
        "only one fits",
        "dataclass",
    ],
)
def test_outputs_are_unwrapped(wrap: Callable[[Tensor], Any]) -> None:
    result = GenericAttentionRelevance(_vit_that_returns(wrap)).attribute(images(), [1, 4, 2])

    expected = subject("timm ViT").attribute(GenericAttentionRelevance, target=[1, 4, 2])
    assert_close(result, expected, relative=0)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda y: {"a": y, "b": 2 * y}, r"a: \(3, 5\), b: \(3, 5\).*fits 2 of them"),
        (lambda y: (y, y), r"\[0\]: \(3, 5\), \[1\]: \(3, 5\).*exactly one is needed"),
        (lambda y: SimpleNamespace(logits=y), "returned SimpleNamespace.*Pass a function"),
        (lambda y: "nothing", "returned str"),
        (lambda y: None, "returned NoneType.*lambda x: model"),
        (lambda y: {}, "returned dict, in which there is no tensor of scores"),
        (lambda y: {"loss": y.sum()}, "no tensor of scores"),
    ],
    ids=["dict", "tuple", "namespace", "str", "None", "empty", "loss"],
)
def test_ambiguous_outputs_are_refused(wrap: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(AmbiguousOutputError, match=f"(?s){said}"):
        GenericAttentionRelevance(_vit_that_returns(wrap)).attribute(images(), 1)


def test_transformers_outputs_with_hidden_states_and_attentions() -> None:
    given = subject("BERT, eager")

    def verbose(ids: Tensor, mask: Tensor) -> Any:
        return given.model(ids, mask, output_hidden_states=True, output_attentions=True)

    result = GenericAttentionRelevance(verbose).attribute(given.inputs, given.target, given.extra)
    assert_close(result, attributed("BERT, eager", "GenericAttentionRelevance"), relative=0)


def test_relevance_maps_are_named_after_the_arguments() -> None:
    (name,) = GenericAttentionRelevance(bert()).relevance_maps(torch.ones(1, 4).long(), 0)
    assert name == ("input_ids", "input_ids")

    given = subject("pixels and ids")
    (name,) = GenericAttentionRelevance(given.model).relevance_maps(given.inputs, 0)
    assert name == ("pixels+ids", "pixels+ids")
