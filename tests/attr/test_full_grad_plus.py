"""FullGrad+: the map of each layer has the whole score, also in windows and behind norms."""

from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from captum_transformer import FullGradPlus
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import with_random_weights

IMAGES = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
IDS = torch.tensor([[3, 14, 15, 9, 2], [6, 5, 3, 5, 8]])


def vit(**arguments: Any) -> tuple[nn.Module, list[nn.Module], Tensor, Any]:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4, **arguments
    )
    return model, list(model.blocks), IMAGES, 3


def windows(version: str) -> tuple[nn.Module, list[nn.Module], Tensor, Any]:
    module = getattr(timm.models, version)
    model = getattr(
        module, "SwinTransformer" if version.endswith("former") else "SwinTransformerV2"
    )(
        img_size=32,
        patch_size=2,
        embed_dim=12,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        num_classes=4,
    )
    return model, [block for layer in model.layers for block in layer.blocks], IMAGES, 3


def bert() -> tuple[nn.Module, list[nn.Module], Tensor, Any]:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = transformers.BertForSequenceClassification(config)
    return model, list(model.bert.encoder.layer), IDS, 1


def gpt2() -> tuple[nn.Module, list[nn.Module], Tensor, Any]:
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=40, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    return model, list(model.transformer.h), IDS, (4, 7)


MODELS = {
    "class token": vit,
    "mean and layer scale": lambda: vit(global_pool="avg", init_values=0.5),
    "windows": lambda: windows("swin_transformer"),
    "norms behind the blocks": lambda: windows("swin_transformer_v2"),
    "norms behind additions": bert,
    "a decoder": gpt2,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_map_of_each_layer_adds_up_to_the_score(name: str) -> None:
    model, layers, inputs, target = MODELS[name]()
    model = with_random_weights(model)
    maps = FullGradPlus(model, layers).layer_maps(inputs, target)

    output: Any = model(inputs)
    logits = (output if isinstance(output, Tensor) else output.logits).detach()
    score = logits[:, target] if isinstance(target, int) else logits[(slice(None), *target)]
    for of_layer in maps:
        assert_close(of_layer.sum(1), score)


def test_the_class_token_keeps_its_own() -> None:
    model, layers, _, target = vit()
    model = with_random_weights(model)
    plus = FullGradPlus(model, layers)
    whole = torch.stack(plus.layer_maps(IMAGES, target)).sum(0)

    assert_close(plus.attribute_tokens(IMAGES, target), whole[:, 1:])
    assert_close(plus.attribute(IMAGES, target).sum((1, 2, 3)), whole[:, 1:].sum(1))


def test_learned_queries_are_refused() -> None:
    model, layers, _, target = vit(global_pool="map")
    with pytest.raises(UnsupportedOperationError, match="learned queries"):
        FullGradPlus(with_random_weights(model), layers).attribute_tokens(IMAGES, target)


def test_layers_must_get_the_tokens() -> None:
    model, layers, _, target = vit()
    model = with_random_weights(model)
    with pytest.raises(InvalidLayerError, match="give at least one"):
        FullGradPlus(model, [])
    with pytest.raises(UnsupportedOperationError, match="sums over several layers"):
        FullGradPlus(model, layers).attribute_layers(IMAGES, ["blocks.0"], target)
    with pytest.raises(InvalidLayerError, match=r"past what enters the layer 'blocks\.0\.mlp'"):
        FullGradPlus(model, ["blocks.0.mlp"]).attribute_tokens(IMAGES, target)
    with pytest.raises(InvalidLayerError, match="Two of the layers get the same tokens"):
        FullGradPlus(model, [layers[0], "blocks.0"]).attribute_tokens(IMAGES, target)
