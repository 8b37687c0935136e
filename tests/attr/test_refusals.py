"""Models and arguments that can't be explained are refused, with the reason."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    AttentionGradCam,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    TransformerAttribution,
)
from captum_transformer.errors import (
    ExplanationError,
    InvalidInputError,
    InvalidLayerError,
    NoAttentionError,
    UnseenOperationError,
    UnsupportedOperationError,
)
from tests.attr.subjects import FLOW_METHODS, METHODS, Method, assert_close, subject
from tests.attr.tiny_models import (
    CLASSES,
    IMAGE,
    bert,
    drawn,
    images,
    timm_vit,
    with_random_weights,
)


@pytest.mark.parametrize(
    "method", ["TransformerAttribution", "ConservativeLRP", "ConservativeLRP, gamma"]
)
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([[1.0]], "must be a tensor, a tuple of tensors or a mapping .* got a list"),
        ("text", "must be a tensor, .* got a str"),
        (None, "got a NoneType"),
        ((), "got an empty tuple"),
        ({}, "got an empty dict"),
        ((torch.zeros(2, 3, *IMAGE), "text"), "got a str at 1"),
        ({"x": torch.zeros(2, 3, *IMAGE), "y": [1.0]}, "got a list at 'y'.*_forward_kwargs"),
        ({0: torch.zeros(2, 3, *IMAGE)}, r"keys of `inputs` must be argument names, got \[0\]"),
        (torch.zeros(2, 3, *IMAGE, dtype=torch.cfloat), "complex64 can't be explained"),
        (torch.zeros(2, 3, *IMAGE, dtype=torch.bool), "masks as `additional_forward_args`"),
        (torch.tensor(1.0), "samples along dimension 0"),
        (torch.zeros(0, 3, *IMAGE), "non-empty"),
        ((torch.zeros(2, 3, *IMAGE), torch.zeros(3, 7)), r"got shapes \[\(2, 3, 8, 12\), \(3, 7\)"),
    ],
    ids=[
        "list",
        "str",
        "None",
        "nothing",
        "empty mapping",
        "mixed",
        "mixed mapping",
        "number as name",
        "complex",
        "bool",
        "scalar",
        "empty",
        "unequal",
    ],
)
def test_inputs_that_are_no_inputs(inputs: Any, said: str, method: str) -> None:
    explain = METHODS[method](subject("timm ViT").model)

    with pytest.raises(AssertionError, match=said):
        explain.attribute(inputs, 1)
    with pytest.raises(AssertionError, match=said):
        explain.attribute_tokens(inputs, 1)


def test_wrong_image_size_is_the_models_own_error() -> None:
    with pytest.raises(AssertionError, match="Input height"):
        GenericAttentionRelevance(subject("timm ViT").model).attribute(torch.zeros(1, 3, 9, 9), 1)
    with pytest.raises(IndexError, match="index out of range"):
        GenericAttentionRelevance(bert()).attribute(torch.full((1, 4), 999), 1)


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 12, 16), nn.GELU(), nn.Linear(16, CLASSES))


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )


class SoftmaxHead(Perceptron):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).softmax(-1)


NEEDS_ATTENTION = [m for m in METHODS if m != "gradient x input"]


@pytest.mark.parametrize("method", NEEDS_ATTENTION)
@pytest.mark.parametrize("model", [Perceptron, Convolutions, SoftmaxHead])
def test_models_without_attention_are_refused(model: type[nn.Module], method: str) -> None:
    explain = METHODS[method](model().double())

    for attribute in (explain.attribute, explain.attribute_tokens):
        with pytest.raises(NoAttentionError) as caught:
            attribute(images(), 1)
        said = str(caught.value)
        assert "scaled_dot_product_attention" in said
        assert "softmax over keys" in said
        assert "has no derivative" in said
        assert "attn_implementation='sdpa'" in said


@pytest.mark.parametrize("model", [Perceptron, Convolutions])
def test_gradient_times_input_needs_no_attention(model: type[nn.Module]) -> None:
    network, pixels = model().double().eval(), images().requires_grad_()
    explain = ConservativeLRP(network, attention_rule=False, layer_norm_rule=False)

    (gradient,) = torch.autograd.grad(network(pixels)[:, 1].sum(), pixels)
    assert_close(explain.attribute(pixels, 1), (gradient * pixels).detach())


class HandWritten(torch.autograd.Function):
    """Attention in one function, as a kernel of its own would be."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return torch.softmax(query @ key.transpose(-1, -2), -1) @ value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            output = torch.softmax(leaves[0] @ leaves[1].transpose(-1, -2), -1) @ leaves[2]
        return torch.autograd.grad(output, leaves, gradients)


class ScriptedAttention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.transpose(-1, -2), -1) @ value


class OneBlock(nn.Module):
    """A residual block around a given attention function."""

    def __init__(self, attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attention = attention
        self.projections = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        attended = self.attention(*(projection(tokens) for projection in self.projections))
        return self.head((tokens + attended).mean(1))


def hidden_attention(kind: str) -> nn.Module:
    attention = {
        "custom function": HandWritten.apply,
        "scripted": torch.jit.script(ScriptedAttention()),
        "no grad": torch.no_grad()(ScriptedAttention()),
    }[kind]
    return with_random_weights(OneBlock(attention))


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("method", NEEDS_ATTENTION)
@pytest.mark.parametrize("kind", ["custom function", "scripted", "no grad"])
def test_hidden_attention_is_refused(kind: str, method: str) -> None:
    explain = METHODS[method](hidden_attention(kind))

    with pytest.raises((NoAttentionError, UnseenOperationError)) as caught:
        explain.attribute(drawn(2, 4, 16), 1)
    said = str(caught.value)
    causes = {"custom function": "autograd.Function", "scripted": "script", "no grad": "no_grad()"}
    assert causes[kind] in said
    if kind != "scripted":
        assert "sdpa" in said or "PyTorch" in said


def test_attention_that_is_seen_beside_hidden_attention_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.hidden = OneBlock(ScriptedAttention()), OneBlock(HandWritten.apply)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.seen(tokens) + self.hidden(tokens)

    model = with_random_weights(Both())
    for method in FLOW_METHODS.values():
        with pytest.raises(UnseenOperationError, match="autograd\\.Function"):
            method(model).attribute(drawn(2, 4, 16), 1)


@pytest.mark.parametrize(
    "method",
    [
        lambda model: PartialLRP(model, layer=2),
        lambda model: AttentionGradCam(model, layer=-3),
        lambda model: TransformerAttribution(model, start_layer=2),
        lambda model: GenericAttentionRelevance(model, start_layer=99),
    ],
)
def test_layers_that_do_not_exist(method: Method) -> None:
    with pytest.raises(InvalidLayerError, match=r"2 layers of attention .*: choose from -2 to 1"):
        method(subject("timm ViT").model).attribute(images(), 1)


@pytest.mark.parametrize("layer", [1.0, "last", None])
def test_layers_are_whole_numbers(layer: Any) -> None:
    for method in (
        PartialLRP(timm_vit(), layer=layer),
        TransformerAttribution(timm_vit(), start_layer=layer),
    ):
        with pytest.raises(InvalidLayerError, match="layer must be an int, got"):
            method.attribute(images(), 1)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x * torch.heaviside(x, torch.zeros(())), "no derivative"),
        (
            lambda x: torch.autograd.grad(x.exp().sum(), x, create_graph=True)[0] + x,
            r"autograd\.grad",
        ),
        (lambda x: F.embedding(torch.arange(len(x)), x), "table .* depends on the inputs"),
    ],
    ids=["heaviside", "a gradient in the model", "rows of a signal"],
)
def test_operations_that_cannot_be_followed_are_refused_with_the_reason(
    function: Callable[[Tensor], Tensor], reason: str
) -> None:
    model = timm_vit().float()
    with pytest.raises(ExplanationError, match=reason):
        GenericAttentionRelevance(lambda x: function(model(x))).attribute(images().float(), 1)


def test_negative_layers_count_from_the_last() -> None:
    given = subject("timm ViT")
    for method in (TransformerAttribution, GenericAttentionRelevance):
        assert_close(
            method(given.model, start_layer=-1).attribute(given.inputs, 1),
            method(given.model, start_layer=1).attribute(given.inputs, 1),
            relative=0,
        )


def test_gamma_per_layer_must_fit_the_model() -> None:
    with pytest.raises(InvalidInputError, match="gamma has 3 values, the model 2 attention layers"):
        ConservativeLRP(timm_vit(), gamma=[0.1, 0.2, 0.3]).attribute(images(), 1)


def test_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="pooling must be 'row', 'map' or 'open', got 'mean'"):
        AttentionGradCam(timm_vit(), pooling="mean")  # type: ignore[arg-type]


def test_relevance_maps_of_windows_are_refused() -> None:
    given = subject("timm Swin")

    with pytest.raises(UnsupportedOperationError, match=r"runs over windows.* `attribute_tokens`"):
        GenericAttentionRelevance(given.model).relevance_maps(given.inputs, 1)


def test_input_that_is_not_turned_into_tokens() -> None:
    given = subject("timm ViT")

    def gated(pixels: Tensor, gates: Tensor) -> Tensor:
        return given.model(pixels) * gates.sum(1, keepdim=True)

    inputs = (given.inputs, drawn(3, 2, seed=5))
    with pytest.raises(UnsupportedOperationError, match="so it has no tokens"):
        GenericAttentionRelevance(gated).attribute_tokens(inputs, 1)
