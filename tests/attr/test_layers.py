"""Relevance inside a model, of layers and heads, from the pass that explains the inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LayerRelevance,
    LeGrad,
    PartialLRP,
    RelevancePatching,
    TransformerAttribution,
    TransformerMethod,
    extend,
)
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import ids, with_random_weights

Make = Callable[[Any], TransformerMethod]
LAYERS = ["patch_embed", "blocks.0", "blocks.1.attn", "blocks.1.mlp.act", "blocks.2.norm1", "norm"]


def plain_gradient(model: Any) -> ConservativeLRP:
    return ConservativeLRP(model, attention_rule=False, layer_norm_rule=False)


def full_lrp(model: Any) -> TransformerAttribution:
    return TransformerAttribution(model, propagate_to_input=True)


FEATURE_WISE: list[Make] = [plain_gradient, AttnLRP, ConservativeLRP, full_lrp]
TOKEN_WISE: list[Make] = [AttentionRollout, GenericAttentionRelevance, TransformerAttribution]


def vit(**arguments: Any) -> Any:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, num_classes=4, **arguments
    )
    return with_random_weights(model)


def images(samples: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(samples, 3, 32, 32, dtype=torch.float64)


@pytest.mark.parametrize("of_inputs", [False, True])
def test_plain_gradient_is_that_of_captum(of_inputs: bool) -> None:
    model = vit()
    found = plain_gradient(model).attribute_layers(
        images(), LAYERS, 3, attribute_to_layer_input=of_inputs
    )

    for name, relevance in zip(LAYERS, found, strict=True):
        captum = LayerGradientXActivation(model, model.get_submodule(name))
        expected = captum.attribute(images(), 3, attribute_to_layer_input=of_inputs)
        assert torch.equal(relevance, expected)


@pytest.mark.parametrize("method", [*FEATURE_WISE, *TOKEN_WISE])
def test_it_is_what_the_rest_of_the_model_attributes_to_its_input(method: Make) -> None:
    model = vit()
    with torch.no_grad():
        tokens = model.blocks[0](model._pos_embed(model.patch_embed(images())))

    def rest(tokens: Tensor) -> Any:
        return model.forward_head(model.norm(model.blocks[2](model.blocks[1](tokens))))

    (relevance,) = method(model).attribute_layers(images(), ["blocks.0"], 3)

    assert_close(relevance, method(rest).attribute(tokens, 3))


def conserving(model: Any) -> extend.GradientMethod:
    return extend.GradientMethod(model, extend.joined(extend.AH, extend.LN, extend.IDENTITY))


@pytest.mark.parametrize("method", [conserving, full_lrp])
def test_relevance_is_kept_from_layer_to_layer_without_biases(method: Make) -> None:
    model = vit(qkv_bias=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    scores = model(images()).detach()[:, 3]

    found = method(model).attribute_layers(images(), [f"blocks.{i}" for i in range(3)], 3)

    for relevance in found:
        expected = torch.ones_like(scores) if method is full_lrp else scores
        assert_close(relevance.flatten(1).sum(1), expected, 1e-8)


def test_sums_agree_with_the_account() -> None:
    model = vit()
    account = ConservativeLRP(model).account(images(), 3)
    (last,) = ConservativeLRP(model).attribute_layers(images(), ["blocks.2"], 3)

    behind = [p.amount for p in account.parts if p.source.startswith(("norm", "head"))]
    assert behind
    assert_close(last.flatten(1).sum(1) + sum(behind), account.total)


@pytest.mark.parametrize("method", FEATURE_WISE)
def test_heads_add_up_to_what_attention_makes(method: Make) -> None:
    model = vit()
    heads = method(model).attribute_heads(images(), 3)
    # The input of the output projection is what the heads make, side by side.
    into = method(model).attribute_layers(
        images(), [f"blocks.{i}.attn.proj" for i in range(3)], 3, attribute_to_layer_input=True
    )

    for of_heads, relevance in zip(heads, into, strict=True):
        assert of_heads.shape == (2, 3, 5)
        assert_close(of_heads, relevance.unflatten(-1, (3, -1)).sum(-1).transpose(1, 2))


def test_heads_of_a_rollout_are_those_of_the_maps() -> None:
    model = vit()
    weights: list[Tensor] = []

    def explicit(block: Any) -> Callable[..., None]:
        def note(_: Any, args: tuple[Tensor]) -> None:
            attn = block.attn
            q, k, _v = attn.qkv(args[0]).unflatten(-1, (3, 3, -1)).unbind(-3)
            scores = (q * attn.scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)
            weights.append(scores.softmax(-1))

        return note

    hooks = [b.attn.register_forward_pre_hook(explicit(b)) for b in model.blocks]
    with torch.no_grad():
        model(images())
    for hook in hooks:
        hook.remove()
    row, expected = torch.eye(5).double()[0].expand(2, 5), []
    for maps in reversed(weights):
        expected.insert(0, row.unsqueeze(1) * maps.sum(-1) / 3)
        row = row + (row.unsqueeze(1) @ maps.mean(1)).squeeze(1)

    heads = AttentionRollout(model, normalize_rows=False).attribute_heads(images(), 3)

    for found, of_layer in zip(heads, expected, strict=True):
        assert_close(found, of_layer)


def test_a_single_layer_method_has_heads_in_its_layer_only() -> None:
    heads = PartialLRP(vit(), layer=1).attribute_heads(images(), 3)

    assert [bool(of_layer.any()) for of_layer in heads] == [False, True, False]


@pytest.mark.parametrize("method", [AttnLRP, GenericAttentionRelevance, full_lrp])
def test_batches_and_single_samples_are_alike(method: Make) -> None:
    model, names = vit(), ["blocks.0", "blocks.1"]
    together = method(model).attribute_layers(images(), names, [3, 1])
    parts = method(model).attribute_layers(images(), names, [3, 1], internal_batch_size=1)
    heads = method(model).attribute_heads(images(), [3, 1])
    of_parts = method(model).attribute_heads(images(), [3, 1], internal_batch_size=1)

    for one, other in zip([*together, *heads], [*parts, *of_parts], strict=True):
        assert_close(one, other)


class WritesInPlace(nn.Module):
    """The residual stream is one tensor that all layers write into."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        x += self.attend(2 * x, 2 * x, 2 * x, need_weights=False)[0]
        x += F.gelu(self.layers[1](2 * x))
        return self.layers[2](x).mean(1)


def test_tensors_count_as_they_were_when_the_layer_made_them() -> None:
    model = with_random_weights(WritesInPlace())
    x = torch.rand(2, 3, 4, dtype=torch.float64)
    (found,) = plain_gradient(model).attribute_layers(x, ["layers.0"], 1)

    made = model.layers[0](x).detach().requires_grad_()
    attended = made + model.attend(2 * made, 2 * made, 2 * made)[0]
    score = model.layers[2](attended + F.gelu(model.layers[1](2 * attended))).mean(1)[:, 1].sum()
    assert_close(found, made.detach() * torch.autograd.grad(score, made)[0])


class WritesIntoView(WritesInPlace):
    """What a layer makes is a view of what the model goes on writing into."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.turn(self.layers[0](x).unsqueeze(-1))
        x += self.attend(2 * x, 2 * x, 2 * x, need_weights=False)[0]
        return self.layers[2](x).mean(1)


def test_views_that_are_written_into_are_refused() -> None:
    model = with_random_weights(WritesIntoView())
    x = torch.rand(2, 3, 4, dtype=torch.float64)

    with pytest.raises(UnsupportedOperationError, match="is a view, and the model writes into"):
        AttnLRP(model).attribute_layers(x, ["turn"], 1)


def test_several_tensors_of_a_layer_are_a_tuple() -> None:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        attn_implementation="eager",
    )
    model = with_random_weights(transformers.BertForSequenceClassification(config))
    layer = model.bert.encoder.layer[1].attention.self

    ((context, weights),) = AttnLRP(model).attribute_layers(ids(), [layer], 1)

    assert context.shape == (3, 7, 16)
    assert weights.shape == (3, 2, 7, 7)
    # Values and weights get the same share of what they make, which is all of it.
    assert_close(weights.sum((1, 2, 3)) * 2, context.sum((1, 2)))


def test_captum_form() -> None:
    model = vit()
    of_one = LayerRelevance(AttnLRP(model), model.blocks[1]).attribute(images(), 3)
    of_two = LayerRelevance(AttnLRP(model), ["blocks.1", "norm"]).attribute(images(), 3)

    assert isinstance(of_one, Tensor)
    assert isinstance(of_two, list)
    assert torch.equal(of_one, of_two[0])
    assert torch.equal(of_two[1], AttnLRP(model).attribute_layers(images(), ["norm"], 3)[0])


class Twice(nn.Module):
    """A layer that runs twice, one beside the score and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.beside, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.constant = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.shared(F.gelu(self.shared(x))) + self.constant(torch.ones(1, 4, dtype=x.dtype))
        return x[:, :3], self.beside(x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("shared", "runs 2 times in a forward pass. Say which call"),
        (("shared", 2), "Call 2 of the layer 'shared' was asked for, but it runs 2 times"),
        ("idle", "The layer 'idle' was not called"),
        ("beside", "The score does not depend on the layer 'beside'"),
        ("constant", "makes no tensor of real numbers that the inputs reach"),
        ("share", "There is no module 'share' in the model. There is: 'model.shared'"),
        (3, "A layer is a module, its dotted name"),
        (("shared", "0"), "The number of a call must be an int"),
    ],
)
def test_layers_that_have_no_relevance(layer: Any, message: str) -> None:
    model = with_random_weights(Twice())
    x = torch.rand(2, 4, dtype=torch.float64)

    with pytest.raises(InvalidLayerError, match=message.replace("(", r"\(")):
        plain_gradient(lambda x: model(x)[0]).attribute_layers(x, [layer], 1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_calls_of_a_shared_layer_are_apart() -> None:
    model = with_random_weights(Twice())
    x = torch.rand(2, 4, dtype=torch.float64)
    first, second = plain_gradient(lambda x: model(x)[0]).attribute_layers(
        x, [(model.shared, 0), (model.shared, -1)], 1
    )

    made = model.shared(x).detach().requires_grad_()
    score = model.shared(F.gelu(made))[:, 1].sum()
    assert_close(first, made.detach() * torch.autograd.grad(score, made)[0])
    assert_close(second, F.one_hot(torch.tensor([1, 1]), 4) * model.shared(F.gelu(made)).detach())


@pytest.mark.parametrize("layer", ["blocks.1.mlp.act", "blocks.1.mlp"])
@pytest.mark.parametrize("method", [GenericAttentionRelevance, TransformerAttribution])
def test_what_no_token_flow_comes_by_is_refused(method: Make, layer: str) -> None:
    with pytest.raises(UnsupportedOperationError, match="has no relevance for the tensor"):
        method(vit()).attribute_layers(images(), [layer], 3)


def test_behind_all_attention_pooled_tokens_are_refused() -> None:
    model = vit(global_pool="avg", class_token=False)
    with pytest.raises(UnsupportedOperationError, match="has no relevance for the tensor"):
        GenericAttentionRelevance(model).attribute_layers(images(), ["blocks.2"], 3)


def test_names_that_two_modules_have_are_refused() -> None:
    models = [vit(), vit()]

    def ensemble(x: Tensor) -> Any:
        return models[0](x) + models[1](x)

    with pytest.raises(InvalidLayerError, match=r"'blocks\.0' may be any of 2 modules"):
        AttnLRP(ensemble).attribute_layers(images(), ["blocks.0"], 3)
    one, other = AttnLRP(ensemble).attribute_layers(images(), [m.blocks[0] for m in models], 3)
    assert_close(one, other)  # the models are alike


class TokensFirst(nn.Module):
    """Its layer has the samples in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1)).mean(0))


@pytest.mark.parametrize("size", [1, 2])
def test_batches_are_not_joined_along_the_tokens(size: int) -> None:
    model, x = with_random_weights(TokensFirst()), torch.rand(4, 5, 8, dtype=torch.float64)

    with pytest.raises(UnsupportedOperationError, match="can't be joined"):
        AttnLRP(model).attribute_layers(x, ["layer"], 3, internal_batch_size=size)
    with pytest.raises(UnsupportedOperationError, match="can't be joined"):
        RelevancePatching(model).attribute(x, x.flip(1), ["layer"], 3, internal_batch_size=size)


def test_methods_that_add_up_layers_have_none_of_one() -> None:
    for attribute in (
        LeGrad(vit()).attribute_heads,
        LayerRelevance(LeGrad(vit()), "norm").attribute,
    ):
        with pytest.raises(UnsupportedOperationError, match="sums over several layers"):
            attribute(images(), 3)


def test_a_sample_without_a_score_has_no_numbers() -> None:
    batch = images()
    batch[1] = torch.nan
    (relevance,) = AttnLRP(vit()).attribute_layers(batch, ["blocks.0"], 3)
    (alone,) = AttnLRP(vit()).attribute_layers(batch[:1], ["blocks.0"], 3)

    assert relevance[1].isnan().all()
    assert_close(relevance[:1], alone)
