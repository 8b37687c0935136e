"""LeGrad, beside hand-written copies of models that keep their maps and each layer's tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import Contrast, LeGrad
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError
from tests.attr.subjects import (
    CLASSES,
    assert_close,
    bert,
    drawn,
    hf_vit,
    ids,
    images,
    mask,
    subject,
    timm_vit,
    torchvision_vit,
    with_random_weights,
)
from tests.attr.test_nan import Model

TARGET = [1, 4, 0]


class Copy(NamedTuple):
    """What a hand-written copy of a model computes.

    Attributes:
        maps: the attention of each layer, ``(samples, heads, queries, keys)``.
        tokens: what each layer gives on, ``(samples, tokens, features)``.
        head: from such tokens to the scores, ``(samples, classes)``.
    """

    maps: list[Tensor]
    tokens: list[Tensor]
    head: Callable[[Tensor], Tensor]


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, closed: Any = None
) -> tuple[Tensor, Tensor]:
    """Attention with its map, of tensors ``(samples, tokens, features)``."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if closed is not None:
        scores = scores.masked_fill(closed, -torch.inf)
    attention = scores.softmax(-1)
    return (attention @ v).transpose(1, 2).flatten(2), attention


def by_hand(copy: Copy, target: list[int], start: int = 0) -> Tensor:
    """The sum over layers, before the columns of tokens that are no inputs are left out."""
    total = torch.zeros(())
    for attention, tokens in list(zip(copy.maps, copy.tokens, strict=True))[start:]:
        score = copy.head(tokens)[range(len(target)), target]
        (gradient,) = torch.autograd.grad(score.sum(), attention, retain_graph=True)
        total = total + gradient.clamp(min=0).mean((1, 2))
    return total


def scaled(total: Tensor) -> Tensor:
    low, high = total.amin(1, keepdim=True), total.amax(1, keepdim=True)
    return (total - low) / (high - low)


def copied_vit(model: Any, x: Tensor) -> Copy:
    tokens = model._pos_embed(model.patch_embed(x))
    maps, streams = [], []
    for block in model.blocks:
        q, k, v = block.attn.qkv(block.norm1(tokens)).chunk(3, -1)
        heads = block.attn.num_heads
        q, k = (
            norm(x.unflatten(-1, (heads, -1))).flatten(2)
            for norm, x in ((block.attn.q_norm, q), (block.attn.k_norm, k))
        )
        attended, attention = attend(q, k, v, heads)
        tokens = tokens + block.ls1(block.attn.proj(attended))
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        maps.append(attention)
        streams.append(tokens)
    return Copy(maps, streams, lambda z: model.forward_head(model.norm(z)))


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


def test_one_layer_is_the_gradient_of_the_score() -> None:
    model = timm_vit(depth=1)
    total = by_hand(copied_vit(model, images()), TARGET)

    assert_close(LeGrad(model).attribute_tokens(images(), TARGET), scaled(total[:, 1:]))


def test_attention_pooling() -> None:
    """As in SigLIP: the gradient is that at the pooler's attention, layer by layer."""
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


def copied_bert(model: Any, ids: Tensor, mask: Tensor) -> Copy:
    tokens = model.bert.embeddings(ids)
    closed = mask[:, None, None] == 0
    maps, streams = [], []
    for layer in model.bert.encoder.layer:
        own, out = layer.attention.self, layer.attention.output
        q, k, v = own.query(tokens), own.key(tokens), own.value(tokens)
        attended, attention = attend(q, k, v, own.num_attention_heads, closed)
        tokens = out.LayerNorm(tokens + out.dense(attended))
        grown = layer.output.dense(layer.intermediate(tokens))
        tokens = layer.output.LayerNorm(tokens + grown)
        maps.append(attention)
        streams.append(tokens)
    return Copy(maps, streams, lambda z: model.classifier(model.bert.pooler(z)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_text_with_padding(attention: str) -> None:
    """Norms behind the sums; padding has nothing, and the scale is that of the words."""
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


def copied_tower(
    layers: Any, tokens: Tensor, head: Callable[[Tensor], Tensor], closed: Any = None
) -> Copy:
    """A hand-written tower of CLIP; the score is the cosine with the other's embedding."""
    maps, streams = [], []
    for layer in layers:
        own, read = layer.self_attn, layer.layer_norm1(tokens)
        projected = own.q_proj(read), own.k_proj(read), own.v_proj(read)
        attended, attention = attend(*projected, own.num_heads, closed)
        tokens = tokens + own.out_proj(attended)
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        maps.append(attention)
        streams.append(tokens)
    return Copy(maps, streams, head)


def clip() -> nn.Module:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    layers = {"num_hidden_layers": 3}
    config = transformers.CLIPConfig(
        text_config={**size, **layers, "vocab_size": 30, "eos_token_id": 29, "bos_token_id": 28},
        vision_config={**size, **layers, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    return with_random_weights(transformers.CLIPModel(config))


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


class Residual(nn.Module):
    """A block as in OpenCLIP, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = nn.MultiheadAttention(16, 2)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        read = self.ln_1(x)
        x = x + self.attn(read, read, read, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClipVision(nn.Module):
    """The image tower of OpenCLIP, which multiplies with a parameter at its end."""

    def __init__(self, *, several: bool = False, turns: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(1, 16))
        self.positional_embedding = nn.Parameter(torch.zeros(7, 16))
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.ln_pre, self.ln_post = nn.LayerNorm(16), nn.LayerNorm(16)
        self.proj = nn.Parameter(torch.zeros(16, 8))
        self.several, self.turns = several, turns

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([cls, x], 1) + self.positional_embedding)
        x = x.permute(1, 0, 2)
        read = []
        for block in self.blocks:
            x = block(x).flip(0) if self.turns else block(x)
            read.append(x)
        if self.several:
            x = x + read[0]
        pooled = self.ln_post(x.permute(1, 0, 2)[:, 0])
        return F.normalize(pooled @ self.proj, dim=-1)


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


@pytest.mark.parametrize(
    "name",
    [
        "timm DeiT, distilled",
        "torchvision ViT",
        "Transformers ViT",
        "GPT-2",
        "nn.TransformerEncoder",
        "nn.TransformerEncoder, norm first",
        "nn.TransformerEncoder, tokens first",
        "pixels and ids",
    ],
)
def test_samples_do_not_depend_on_each_other(name: str) -> None:
    whole = subject(name).attribute_tokens(LeGrad)
    whole = whole if isinstance(whole, tuple) else (whole,)

    for sample in range(3):
        alone = subject(name).samples([sample]).attribute_tokens(LeGrad)
        for part, expected in zip(
            whole, alone if isinstance(alone, tuple) else (alone,), strict=True
        ):
            assert_close(part[sample : sample + 1], expected)
    for part, count in zip(whole, subject(name).tokens, strict=True):
        assert part.shape == (3, count)
        assert part.amin() == 0
        assert part.amax(1).eq(1).all()


def test_all_spellings_of_a_model_are_alike() -> None:
    assert_close(
        LeGrad(hf_vit("eager")).attribute_tokens(images(), TARGET),
        LeGrad(hf_vit("sdpa")).attribute_tokens(images(), TARGET),
        1e-5,  # Transformers computes the softmax in float32 where it is written out
    )
    tokens_first = subject("nn.TransformerEncoder, tokens first").attribute_tokens(LeGrad)
    assert_close(tokens_first, subject("nn.TransformerEncoder").attribute_tokens(LeGrad))


def test_a_contrast_is_the_score_of_the_difference() -> None:
    model, x = torchvision_vit(), drawn(2, 3, 8, 8)

    once = LeGrad(lambda images: (scores := model(images))[:, 1] - scores[:, 2]).attribute(x)
    assert_close(LeGrad(model).attribute(x, Contrast(1, rather_than=2)), once)


def test_several_targets() -> None:
    model, x = torchvision_vit(), drawn(2, 3, 8, 8)
    for target, found in zip([1, 2], LeGrad(model).attribute_targets(x, [1, 2]), strict=True):
        assert_close(found, LeGrad(model).attribute(x, target))


def test_a_map_of_one_value_is_zero() -> None:
    model: Any = timm_vit()
    nn.init.zeros_(model.head.weight)
    assert not LeGrad(model).attribute(images(), TARGET).any()


@pytest.mark.parametrize(
    ("forward", "x", "why"),
    [
        (lambda: subject("timm Swin").model, drawn(2, 3, 16, 16), "tokens are merged or dropped"),
        (
            lambda: with_random_weights(OpenClipVision(several=True)),
            images(),
            "tokens of several layers",
        ),
        (lambda: with_random_weights(OpenClipVision(turns=True)), images(), "keep their places"),
    ],
    ids=["merged tokens", "several layers", "tokens turned round"],
)
def test_refuses_heads_that_do_not_read_one_layers_tokens(forward, x, why: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=why):
        LeGrad(forward()).attribute(x, 1)


def test_refuses_class_attention() -> None:
    model = timm.create_model(
        "cait_xxs24_224", img_size=32, depth=2, depth_token_only=2, embed_dim=16, num_heads=2
    )
    with pytest.raises(UnsupportedOperationError, match="LeGrad lets the model's head read"):
        LeGrad(model).attribute(torch.rand(1, 3, 32, 32), 1)


def test_refuses_cross_attention() -> None:
    config = transformers.BartConfig(
        vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_labels=CLASSES,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=2, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).eval()
    inputs = {"input_ids": ids(), "decoder_input_ids": ids()}
    with pytest.raises(UnsupportedOperationError, match="rules for cross-attention"):
        LeGrad(model).attribute(inputs, (3, 1))


def test_refuses_layers_that_are_not_there_and_generated_text() -> None:
    with pytest.raises(InvalidLayerError, match="choose from -2 to 1"):
        LeGrad(timm_vit(), start_layer=2).attribute(images(), TARGET)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=30, n_positions=12)
    ).eval()
    with pytest.raises(UnsupportedOperationError, match="later ones"):
        LeGrad(model).attribute_generated(ids()[:, :4], ids())


class Latents(nn.Module):
    """Learned latents read the tokens once, then themselves, and are read by a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, 3, 16))
        self.query = nn.Parameter(torch.zeros(1, 1, 16))
        self.read = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        latents, query = (p.expand(len(x), -1, -1) for p in (self.latents, self.query))
        first, *between, last = self.read
        latents = first(latents, x, x)[0]
        for layer in between:
            latents = latents + layer(latents, latents, latents)[0]
        return last(query, latents, latents)[0][:, 0]


def test_refuses_latents_that_lead_back_to_no_token() -> None:
    with pytest.raises(UnsupportedOperationError, match="leads back to no token"):
        LeGrad(with_random_weights(Latents())).attribute(drawn(2, 5, 16), 1)


class WritesIntoViews(nn.Module):
    """Blocks that write into parts of their tokens, and a head that does."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            timm.models.vision_transformer.Block(16, 2, qkv_bias=True) for _ in range(3)
        )
        self.head, self.writes = nn.Linear(16, CLASSES), writes

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self._scaled(block(x))
        return self.head(self._scaled(x)[:, 0])

    def _scaled(self, x: Tensor) -> Tensor:
        if self.writes:
            x = x.clone()
            x[:, 1:] *= 0.5
            return x
        return torch.cat([x[:, :1], 0.5 * x[:, 1:]], 1)


def test_writes_into_views_are_what_they_do() -> None:
    models = [with_random_weights(WritesIntoViews(writes=writes)) for writes in (True, False)]
    x = drawn(3, 5, 16)
    assert_close(*(LeGrad(model).attribute_tokens(x, TARGET) for model in models))


def test_attention_that_is_no_number_gives_no_map() -> None:
    """Not even where the kernel makes numbers of it."""
    model = Model()
    model.qkv.weight.data[1, 0] = torch.nan
    assert LeGrad(model).attribute(torch.randn(2, 5, 8), 1).isnan().any()
