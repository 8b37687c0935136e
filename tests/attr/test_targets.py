"""All forms of Captum's targets are accepted, and targets that don't fit are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from captum_transformer import AttnLRP, ConservativeLRP, GenericAttentionRelevance
from captum_transformer.errors import ExplanationError, InvalidTargetError
from tests.attr.subjects import METHODS, assert_close, attributed, subject

ONE_CLASS = {
    "int": 3,
    "tuple": (3,),
    "tensor of one": torch.tensor(3),
    "tensor of one, 1-d": torch.tensor([3]),
    "tensor": torch.tensor([3, 3, 3]),
    "list": [3, 3, 3],
    "list of tuples": [(3,), (3,), (3,)],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ONE_CLASS)
def test_forms_for_one_class(form: str, method: str) -> None:
    given = subject("timm ViT")
    result = given.attribute(METHODS[method], target=ONE_CLASS[form])

    assert_close(result, given.attribute(METHODS[method], target=[3, 3, 3]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "target", [torch.tensor([1, 4, 0]), [(1,), (4,), (0,)]], ids=["tensor", "list of tuples"]
)
def test_forms_for_one_class_each(target: Any, method: str) -> None:
    result = subject("timm ViT").attribute(METHODS[method], target=target)

    assert_close(result, attributed("timm ViT", method), relative=0)


@pytest.mark.parametrize("method", METHODS)
def test_no_target_for_a_model_with_one_score_per_sample(method: str) -> None:
    given = subject("timm ViT")

    def score(pixels: torch.Tensor) -> torch.Tensor:
        return given.model(pixels)[:, 2]

    expected = given.attribute(METHODS[method], target=2)
    assert_close(METHODS[method](score).attribute(given.inputs), expected)
    as_column = METHODS[method](lambda pixels: score(pixels)[:, None])
    assert_close(as_column.attribute(given.inputs), expected)


@pytest.mark.parametrize("method", METHODS)
def test_tuples_for_outputs_of_more_dimensions(method: str) -> None:
    given = subject("timm ViT")

    def halves(pixels: torch.Tensor) -> torch.Tensor:
        logits = given.model(pixels)[:, :4]
        return logits.unflatten(1, (2, 2))

    for target in ((1, 0), [(1, 0)] * 3):
        result = METHODS[method](halves).attribute(given.inputs, target)
        assert_close(result, given.attribute(METHODS[method], target=2))


@pytest.mark.parametrize("method", METHODS)
def test_too_many_indices_raise_an_assertion_error_as_in_captum(method: str) -> None:
    with pytest.raises(AssertionError, match="does not fit the model's output of shape"):
        subject("timm ViT").attribute(METHODS[method], target=(9999,) * 20)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (5, r"target 5 does not fit the model's output of shape \(3, 5\)"),
        (-6, r"target -6 does not fit"),
        ([0, 1], r"target \[0, 1\] does not fit"),
        ([0, 1, 2, 3], r"target \[0, 1, 2, 3\] does not fit"),
        ([0, 1, 99], r"target \[0, 1, 99\] does not fit"),
        (torch.tensor([0, 1]), "one class index for all samples, a tensor or list"),
        (torch.tensor([0, 1, 7]), "does not fit"),
        (torch.tensor([[0, 1, 2]]), "does not fit"),
        (torch.tensor([0.0, 1.0, 2.0]), "does not fit"),
        (2.5, "target 2.5 does not fit"),
        (torch.tensor(2.5), "does not fit"),
        ([0.5, 1.5, 2.5], "does not fit"),
        ("dog", "target 'dog' does not fit"),
        (torch.zeros(50, dtype=torch.long), r"target of shape \(50,\) does not fit"),
        ([(0, 1), (1, 1), (2, 1)], "does not fit"),
        (None, r"leaves \(5,\) values per sample .* one is explained at a time. Give a target"),
    ],
    ids=str,
)
def test_targets_that_do_not_fit_are_refused(target: Any, said: str) -> None:
    given = subject("timm ViT")

    with pytest.raises(InvalidTargetError, match=f"(?s){said}"):
        GenericAttentionRelevance(given.model).attribute(given.inputs, target)
    with pytest.raises(InvalidTargetError):
        GenericAttentionRelevance(given.model).attribute_tokens(given.inputs, target)
    with pytest.raises(InvalidTargetError):
        GenericAttentionRelevance(given.model).attribute_targets(given.inputs, [0, target])


@pytest.mark.parametrize(
    "without", [lambda y: y[0], lambda y: y.mean(), lambda y: y[:1].squeeze(0)]
)
def test_output_without_samples_asks_for_them(without: Callable[[torch.Tensor], Any]) -> None:
    given = subject("timm ViT")

    with pytest.raises(InvalidTargetError, match="samples along dimension 0, also where there is"):
        GenericAttentionRelevance(lambda x: without(given.model(x))).attribute(given.inputs, 0)


def test_output_of_more_dimensions_asks_for_a_tuple() -> None:
    given = subject("timm ViT")

    with pytest.raises(InvalidTargetError, match="Give a tuple of indices"):
        GenericAttentionRelevance(given.model.forward_features).attribute(given.inputs, 0)


def test_output_that_no_input_reaches_is_refused() -> None:
    given = subject("timm ViT")

    def detached(pixels: torch.Tensor) -> torch.Tensor:
        return given.model(pixels) * 0 + torch.ones(3, 5)

    def constant(pixels: torch.Tensor) -> torch.Tensor:
        given.model(pixels)
        return torch.ones(3, 5, requires_grad=True)

    with pytest.raises(AssertionError, match="does not depend on any of the inputs"):
        GenericAttentionRelevance(constant).attribute(given.inputs, 0)

    queries = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)

    def learned(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            given.model(pixels)
        return torch.nn.functional.scaled_dot_product_attention(queries, queries, queries)[:, 0]

    for method in (GenericAttentionRelevance, ConservativeLRP, AttnLRP):
        with pytest.raises(AssertionError, match=r"detaches them itself, with `torch.no_grad\(\)`"):
            method(learned).attribute(given.inputs, 0)
    zero = GenericAttentionRelevance(detached).attribute(given.inputs, 0)
    assert zero.isfinite().all()


def test_error_of_a_target_is_no_error_of_the_model() -> None:
    given = subject("timm ViT")

    with pytest.raises(InvalidTargetError) as caught:
        GenericAttentionRelevance(given.model).attribute(given.inputs, 77)
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, ExplanationError)
