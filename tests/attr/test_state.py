"""Explaining a model leaves it, its inputs and the random state exactly as they were."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance
from captum_transformer.errors import InvalidTargetError, NoAttentionError
from tests.attr.snapshots import unchanged
from tests.attr.subjects import FLOW_METHODS, METHODS, SUBJECTS, assert_close, attributed, subject
from tests.attr.tiny_models import CLASSES, bert, images, timm_vit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "training"),
    [*((name, True) for name in SUBJECTS), ("timm ViT", False), ("nn.TransformerEncoder", False)],
)
def test_nothing_changes(name: str, training: bool, method: str) -> None:
    given = subject(name)
    given.model.train(training)

    with unchanged(given.model, *given.tensors):
        given.attribute(METHODS[method])


@pytest.mark.parametrize("method", METHODS)
def test_modes_of_modules_frozen_parameters_and_gradients_stay(method: str) -> None:
    given = subject("timm ViT")
    for i, module in enumerate(given.model.modules()):
        module.training = i % 3 == 0
    for i, parameter in enumerate(given.model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        if i % 4 == 0:
            parameter.grad = torch.ones_like(parameter)
    given.model.head.register_forward_hook(lambda *_: None)
    pixels = given.inputs.requires_grad_()
    pixels.grad = torch.full_like(pixels, 7.0)

    with unchanged(given.model, pixels):
        explain = METHODS[method](given.model)
        result = explain.attribute(pixels, given.target)
        explain.attribute_tokens(pixels, given.target)
        explain.attribute_targets(pixels, [0, 1])
    assert_close(result, attributed("timm ViT", method))


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_model_has_the_same_map(method: str) -> None:
    given = subject("BERT")
    given.model.requires_grad_(False)

    with unchanged(given.model, *given.tensors):
        result = given.attribute(METHODS[method])
    assert_close(result, attributed("BERT", method))


class Failing(nn.Module):
    """Raises late in its forward pass, having drawn random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = timm_vit()

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.inner(pixels)
        torch.rand(5)
        raise FloatingPointError(f"no logits of shape {tuple(logits.shape)}")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_if_the_model_raises(method: str, training: bool) -> None:
    model, pixels = Failing().train(training), images()
    explain = METHODS[method](model)

    for attribute in (explain.attribute, explain.attribute_tokens):
        with unchanged(model, pixels), pytest.raises(FloatingPointError, match=r"\(3, 5\)"):
            attribute(pixels, 1)
    with unchanged(model, pixels), pytest.raises(FloatingPointError):
        explain.attribute_targets(pixels, [1, 2])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_after_a_bad_target(method: str) -> None:
    given = subject("timm ViT")
    given.model.train()

    with unchanged(given.model, given.inputs), pytest.raises(InvalidTargetError):
        given.attribute(METHODS[method], target=99)


def test_nothing_changes_after_a_refusal() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(288, CLASSES)).double().train()
    pixels = images()

    for method in FLOW_METHODS.values():
        with unchanged(model, pixels), pytest.raises(NoAttentionError):
            method(model).attribute(pixels, 1)


def test_the_attention_implementation_stays() -> None:
    for attention in ("sdpa", "eager"):
        model = bert(attention)
        for method in METHODS.values():
            method(model).attribute(torch.ones(1, 4).long(), 1)
        assert model.config._attn_implementation == attention


def test_an_input_that_the_model_writes_into_stays() -> None:
    given = subject("timm ViT")

    def normalising(pixels: Tensor) -> Tensor:
        return given.model(pixels.sub_(0.5).div_(0.5))

    with unchanged(given.model, given.inputs):
        result = GenericAttentionRelevance(normalising).attribute(given.inputs, 1)
    expected = GenericAttentionRelevance(given.model).attribute((given.inputs - 0.5) / 0.5, 1)
    assert_close(result, expected)


def test_explaining_twice_gives_the_same() -> None:
    given = subject("timm ViT")
    for method in METHODS.values():
        explain = method(given.model)
        first = explain.attribute(given.inputs, given.target)
        assert torch.equal(first, explain.attribute(given.inputs, given.target))
        assert first.data_ptr() != given.inputs.data_ptr()
