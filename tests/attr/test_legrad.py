"""LeGrad equals its formula, computed with hand-written copies of models."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import LeGrad
from tests.attr.copied_models import (
    Copy,
    OpenClipVision,
    attend,
    clip,
    copied_bert,
    copied_tower,
    copied_vit,
)
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import (
    CLASSES,
    bert,
    drawn,
    ids,
    images,
    mask,
    timm_vit,
    with_random_weights,
)

TARGET = [1, 4, 0]


def by_hand(copy: Copy, target: list[int], start: int = 0) -> Tensor:
    """The sum over layers, also for tokens that are not inputs."""
    total = torch.zeros(())
    for attention, tokens in list(zip(copy.maps, copy.tokens, strict=True))[start:]:
        score = copy.head(tokens)[range(len(target)), target]
        (gradient,) = torch.autograd.grad(score.sum(), attention, retain_graph=True)
        total = total + gradient.clamp(min=0).mean((1, 2))
    return total


def scaled(total: Tensor) -> Tensor:
    low, high = total.amin(1, keepdim=True), total.amax(1, keepdim=True)
    return (total - low) / (high - low)


@pytest.mark.parametrize("start", [0, 1, -1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.5},
        {"reg_tokens": 2, "global_pool": "avg", "qk_norm": True, "no_embed_class": True},
    ],
    ids=["class token", "scaled layers", "registers, pooled"],
)
def test_a_vision_transformer(options: dict[str, Any], start: int) -> None:
    model = timm_vit(depth=3, **options)
    copy = copied_vit(model, images())
    torch.testing.assert_close(copy.head(copy.tokens[-1]), model(images()), rtol=0, atol=1e-10)

    total = by_hand(copy, TARGET, start)[:, model.num_prefix_tokens :]

    method = LeGrad(model, start_layer=start)
    tokens = method.attribute_tokens(images(), TARGET)
    assert_close(tokens, scaled(total), 1e-9)
    # A token's relevance is spread evenly over the pixels that it was made from.
    pixels = method.attribute(images(), TARGET)
    patches = pixels.sum(1).unflatten(1, (-1, 4)).unflatten(3, (-1, 4)).sum((2, 4))
    assert_close(patches.flatten(1), tokens)


def test_attention_pooling() -> None:
    """As in SigLIP: the gradient with respect to the pooler's attention, for each layer."""
    model: Any = timm_vit(depth=3, class_token=False, global_pool="map")
    tokens = copied_vit(model, images()).tokens
    pool, total = model.attn_pool, torch.zeros(())
    for stream in tokens:
        read = model.norm(stream)
        k, v = pool.kv(read).chunk(2, -1)
        q = pool.q(pool.latent.expand(len(read), -1, -1))
        attended, attention = attend(q, k, v, pool.num_heads)
        pooled = pool.proj(attended)
        pooled = pooled + pool.mlp(pool.norm(pooled))
        scores = model.head(model.fc_norm(pooled[:, 0]))
        (gradient,) = torch.autograd.grad(scores[range(3), TARGET].sum(), attention)
        total = total + gradient.clamp(min=0).mean((1, 2))
    torch.testing.assert_close(scores, model(images()), rtol=0, atol=1e-10)

    assert_close(LeGrad(model).attribute_tokens(images(), TARGET), scaled(total))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_text_with_padding(attention: str) -> None:
    """Padding is zero, and the words alone set the scale."""
    model = bert(attention)
    copy = copied_bert(model, ids(), mask())
    logits = model(ids(), attention_mask=mask()).logits
    torch.testing.assert_close(copy.head(copy.tokens[-1]), logits, rtol=0, atol=1e-10)

    total = by_hand(copy, TARGET)
    tokens = LeGrad(model).attribute_tokens(ids(), TARGET, (mask(),))

    for sample, length in enumerate(mask().sum(1).tolist()):
        alone = scaled(total[sample : sample + 1, :length])
        assert_close(tokens[sample : sample + 1, :length], alone)
        assert not tokens[sample, length:].any()


def test_clip_of_transformers() -> None:
    model: Any = clip()
    x = drawn(3, 3, 8, 8)
    words = ids()
    words[:, -1] = 29
    scale = model.logit_scale.exp()

    def similarity(pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        output = model(input_ids=input_ids, pixel_values=pixel_values)
        return output.logits_per_image.diagonal()

    output = model(input_ids=words, pixel_values=x)
    of_words, of_images = output.text_embeds.detach(), output.image_embeds.detach()
    vision, text = model.vision_model, model.text_model
    image_tower = copied_tower(
        vision.encoder.layers,
        vision.pre_layrnorm(vision.embeddings(x)),
        lambda z: F.cosine_similarity(
            model.visual_projection(vision.post_layernorm(z[:, 0])), of_words
        )[:, None],
    )
    text_tower = copied_tower(
        text.encoder.layers,
        text.embeddings(words),
        lambda z: F.cosine_similarity(
            model.text_projection(text.final_layer_norm(z)[:, -1]), of_images
        )[:, None],
        torch.ones(words.shape[1], words.shape[1], dtype=torch.bool).triu(1),
    )
    for tower in (image_tower, text_tower):
        found = tower.head(tower.tokens[-1])[:, 0] * scale
        torch.testing.assert_close(found, similarity(x, words))

    # Transformers computes the softmax in float32.
    patches = LeGrad(similarity).attribute_tokens(x, None, (words,))
    assert_close(patches, scaled(by_hand(image_tower, [0, 0, 0])[:, 1:]), 1e-5)
    both = LeGrad(similarity).attribute_tokens((x, words))
    assert_close(both[0], patches)
    assert_close(both[1], scaled(by_hand(text_tower, [0, 0, 0])), 1e-5)


def test_a_tower_as_in_open_clip() -> None:
    model: Any = with_random_weights(OpenClipVision())
    texts = F.normalize(drawn(CLASSES, 8, seed=5), dim=-1)
    x = model.conv1(images()).flatten(2).transpose(1, 2)
    cls = model.class_embedding.expand(3, 1, -1)
    tokens = model.ln_pre(torch.cat([cls, x], 1) + model.positional_embedding)
    maps, streams = [], []
    for block in model.blocks:
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        q, k, v = F.linear(block.ln_1(tokens), weight, bias).chunk(3, -1)
        attended, attention = attend(q, k, v, 2)
        tokens = tokens + block.attn.out_proj(attended)
        tokens = tokens + block.mlp(block.ln_2(tokens))
        maps.append(attention)
        streams.append(tokens)

    def head(z: Tensor) -> Tensor:
        return F.normalize(model.ln_post(z[:, 0]) @ model.proj, dim=-1) @ texts.T

    def scores(images: Tensor) -> Tensor:
        return model(images) @ texts.T

    torch.testing.assert_close(head(tokens), scores(images()), rtol=0, atol=1e-10)
    total = by_hand(Copy(maps, streams, head), TARGET)[:, 1:]
    assert_close(LeGrad(scores).attribute_tokens(images(), TARGET), scaled(total))
