"""Layers whose relevance is unknown or ambiguous are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_transformer import (
    AttnLRP,
    GenericAttentionRelevance,
    LayerRelevance,
    LeGrad,
    RelevancePatching,
    TransformerAttribution,
)
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError
from tests.attr.layered_models import (
    Make,
    TokensFirst,
    Twice,
    WritesIntoView,
    images,
    plain_gradient,
    vit,
)
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import with_random_weights


def test_views_that_are_written_into_are_refused() -> None:
    model = with_random_weights(WritesIntoView())
    x = torch.rand(2, 3, 4, dtype=torch.float64)

    with pytest.raises(UnsupportedOperationError, match="is a view, and the model writes into"):
        AttnLRP(model).attribute_layers(x, ["turn"], 1)


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
def test_layers_without_relevance_are_refused(layer: Any, message: str) -> None:
    model = with_random_weights(Twice())
    x = torch.rand(2, 4, dtype=torch.float64)

    with pytest.raises(InvalidLayerError, match=message.replace("(", r"\(")):
        plain_gradient(lambda x: model(x)[0]).attribute_layers(x, [layer], 1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("layer", ["blocks.1.mlp.act", "blocks.1.mlp"])
@pytest.mark.parametrize("method", [GenericAttentionRelevance, TransformerAttribution])
def test_layers_that_the_token_flow_does_not_pass_are_refused(method: Make, layer: str) -> None:
    with pytest.raises(UnsupportedOperationError, match="has no relevance for the tensor"):
        method(vit()).attribute_layers(images(), [layer], 3)


def test_pooled_tokens_behind_all_attention_are_refused() -> None:
    model = vit(global_pool="avg", class_token=False)
    with pytest.raises(UnsupportedOperationError, match="has no relevance for the tensor"):
        GenericAttentionRelevance(model).attribute_layers(images(), ["blocks.2"], 3)


def test_names_of_two_modules_are_refused() -> None:
    models = [vit(), vit()]

    def ensemble(x: Tensor) -> Any:
        return models[0](x) + models[1](x)

    with pytest.raises(InvalidLayerError, match=r"'blocks\.0' may be any of 2 modules"):
        AttnLRP(ensemble).attribute_layers(images(), ["blocks.0"], 3)
    one, other = AttnLRP(ensemble).attribute_layers(images(), [m.blocks[0] for m in models], 3)
    assert_close(one, other)  # the models are alike


@pytest.mark.parametrize("size", [1, 2])
def test_batches_with_samples_in_another_dimension_are_refused(size: int) -> None:
    model, x = with_random_weights(TokensFirst()), torch.rand(4, 5, 8, dtype=torch.float64)

    with pytest.raises(UnsupportedOperationError, match="can't be joined"):
        AttnLRP(model).attribute_layers(x, ["layer"], 3, internal_batch_size=size)
    with pytest.raises(UnsupportedOperationError, match="can't be joined"):
        RelevancePatching(model).attribute(x, x.flip(1), ["layer"], 3, internal_batch_size=size)


def test_methods_that_sum_over_layers_are_refused() -> None:
    for attribute in (
        LeGrad(vit()).attribute_heads,
        LayerRelevance(LeGrad(vit()), "norm").attribute,
    ):
        with pytest.raises(UnsupportedOperationError, match="sums over several layers"):
            attribute(images(), 3)
