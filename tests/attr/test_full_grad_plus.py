"""FullGrad+: the map of each layer has the whole score, also in windows and behind norms."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
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


WIDTH, HEADS = 8, 2


class Attention(nn.Module):
    def __init__(self, calls: str) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if self.calls == "one by one":
            heads = zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True)
            made = torch.stack([F.scaled_dot_product_attention(*head) for head in heads], 1)
        elif self.calls == "the difference of two":
            one, other = (F.scaled_dot_product_attention(q, key, v) for key in (k, q))
            made = one - other / 2
        else:
            made = F.scaled_dot_product_attention(q, k, v)
        return self.out(made.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, calls: str, *, skip: bool) -> None:
        super().__init__()
        self.norm, self.attention, self.skip = nn.LayerNorm(WIDTH), Attention(calls), skip

    def forward(self, x: Tensor) -> Tensor:
        made = self.attention(self.norm(x))
        return x + made if self.skip else made


class Blocks(nn.Module):
    """Blocks with or without a skip connection; `joined` is the block that a token is joined to."""

    def __init__(self, skips: str, calls: str = "", joined: int | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(calls, skip=one == "x") for one in skips)
        self.token, self.joined = nn.Parameter(torch.zeros(1, 1, WIDTH)), joined
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self.blocks):
            if place == self.joined:
                x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            x = block(x)
        return self.head(self.norm(x)[:, 0])


TOKENS = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def by_hand(model: Blocks, place: int, target: int) -> Tensor:
    """Each token's input to a block times the gradient, with the biases behind it at their token.

    The gradient holds attention weights and deviations of norms.
    """
    biases: list[Tensor] = []

    def layer(x: Tensor, module: nn.Linear) -> Tensor:
        made = x @ module.weight.T
        biases.append(module.bias.expand(made.shape).clone())
        return made + biases[-1]

    def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
        deviation = (x.var(-1, unbiased=False, keepdim=True) + module.eps).sqrt().detach()
        made = (x - x.mean(-1, keepdim=True)) / deviation * module.weight
        biases.append(module.bias.expand(made.shape).clone())
        return made + biases[-1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1).detach() @ v

    x, own = TOKENS.clone().requires_grad_(), TOKENS
    for at, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if at == place:
            own = x
            biases.clear()
        parts = layer(norm(x, block.norm), block.attention.qkv)
        q, k, v = parts.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        made = attend(q, k, v)
        if block.attention.calls == "the difference of two":
            made = made - attend(q, q, v) / 2
        made = layer(made.transpose(1, 2).flatten(2), block.attention.out)
        x = x + made if block.skip else made
    score = layer(norm(x, model.norm)[:, 0], model.head)[:, target].sum()
    gradients = torch.autograd.grad(score, [own, *biases])
    found, *parts = [t * g for t, g in zip([own, *biases], gradients, strict=True)]
    found = found.sum(-1)
    for part in parts:
        of_tokens = part.sum(-1)
        found += of_tokens if part.ndim == 3 else F.pad(of_tokens[:, None], (0, 4))
    return found.detach()


@pytest.mark.parametrize("calls", ["one", "one by one", "the difference of two"])
@pytest.mark.parametrize("skips", ["xx", "--", "x-", "-x", "x-x", "--x"])
def test_biases_belong_to_their_own_tokens(skips: str, calls: str) -> None:
    model = with_random_weights(Blocks(skips, calls))
    maps = FullGradPlus(model, list(model.blocks)).layer_maps(TOKENS, 2)
    score = model(TOKENS)[:, 2].detach()
    for place, of_layer in enumerate(maps):
        assert_close(of_layer, by_hand(model, place, 2))
        assert_close(of_layer.sum(1), score)


def test_a_model_without_biases_has_the_same_maps() -> None:
    model = with_random_weights(Blocks("x-"))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.bias = None
    blocks = list(model.blocks)
    alone, without = (FullGradPlus(model, blocks, biases=one) for one in (True, False))
    found, expected = (torch.stack(one.layer_maps(TOKENS, 2)) for one in (alone, without))
    assert_close(found, expected)


def test_biases_at_tokens_that_are_joined_later_are_refused() -> None:
    model = with_random_weights(Blocks("xxx", joined=2))
    with pytest.raises(UnsupportedOperationError, match="joined to them later"):
        FullGradPlus(model, list(model.blocks)).layer_maps(TOKENS, 2)
    maps = FullGradPlus(model, list(model.blocks), biases=False).layer_maps(TOKENS, 2)
    assert [tuple(of_layer.shape) for of_layer in maps] == [(2, 5), (2, 5), (2, 6)]


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
