"""Relevance of layers and heads inside a model, from the pass that explains the inputs."""

from collections.abc import Callable
from typing import Any

import pytest
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
    PartialLRP,
    TransformerAttribution,
    extend,
)
from tests.attr.layered_models import (
    Make,
    Twice,
    WritesInPlace,
    full_lrp,
    images,
    plain_gradient,
    vit,
)
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import ids, with_random_weights

LAYERS = ["patch_embed", "blocks.0", "blocks.1.attn", "blocks.1.mlp.act", "blocks.2.norm1", "norm"]


FEATURE_WISE: list[Make] = [plain_gradient, AttnLRP, ConservativeLRP, full_lrp]
TOKEN_WISE: list[Make] = [AttentionRollout, GenericAttentionRelevance, TransformerAttribution]


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
def test_a_layer_has_the_map_of_the_rest_of_the_model(method: Make) -> None:
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
def test_relevance_is_conserved_across_layers_without_biases(method: Make) -> None:
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
def test_heads_add_up_to_the_output_of_attention(method: Make) -> None:
    model = vit()
    heads = method(model).attribute_heads(images(), 3)
    # The input of the output projection has the outputs of the heads, side by side.
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


def test_tensors_have_the_values_that_the_layer_returned() -> None:
    model = with_random_weights(WritesInPlace())
    x = torch.rand(2, 3, 4, dtype=torch.float64)
    (found,) = plain_gradient(model).attribute_layers(x, ["layers.0"], 1)

    made = model.layers[0](x).detach().requires_grad_()
    attended = made + model.attend(2 * made, 2 * made, 2 * made)[0]
    score = model.layers[2](attended + F.gelu(model.layers[1](2 * attended))).mean(1)[:, 1].sum()
    assert_close(found, made.detach() * torch.autograd.grad(score, made)[0])


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
    # Values and weights get the same share of the relevance of their product.
    assert_close(weights.sum((1, 2, 3)) * 2, context.sum((1, 2)))


def test_captum_form() -> None:
    model = vit()
    of_one = LayerRelevance(AttnLRP(model), model.blocks[1]).attribute(images(), 3)
    of_two = LayerRelevance(AttnLRP(model), ["blocks.1", "norm"]).attribute(images(), 3)

    assert isinstance(of_one, Tensor)
    assert isinstance(of_two, list)
    assert torch.equal(of_one, of_two[0])
    assert torch.equal(of_two[1], AttnLRP(model).attribute_layers(images(), ["norm"], 3)[0])


def test_calls_of_a_shared_layer_have_their_own_relevance() -> None:
    model = with_random_weights(Twice())
    x = torch.rand(2, 4, dtype=torch.float64)
    first, second = plain_gradient(lambda x: model(x)[0]).attribute_layers(
        x, [(model.shared, 0), (model.shared, -1)], 1
    )

    made = model.shared(x).detach().requires_grad_()
    score = model.shared(F.gelu(made))[:, 1].sum()
    assert_close(first, made.detach() * torch.autograd.grad(score, made)[0])
    assert_close(second, F.one_hot(torch.tensor([1, 1]), 4) * model.shared(F.gelu(made)).detach())


def test_a_sample_whose_score_is_nan_has_a_map_of_nan() -> None:
    batch = images()
    batch[1] = torch.nan
    (relevance,) = AttnLRP(vit()).attribute_layers(batch, ["blocks.0"], 3)
    (alone,) = AttnLRP(vit()).attribute_layers(batch[:1], ["blocks.0"], 3)

    assert relevance[1].isnan().all()
    assert_close(relevance[:1], alone)
