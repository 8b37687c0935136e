"""The attribution is the same however a model computes its attention."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance
from tests.attr.explicit_attention import split_heads
from tests.attr.subjects import MAGNIFY_ROUNDING, METHODS, assert_close, attributed, subject
from tests.attr.tiny_models import drawn, encoder, hf_vit, images, timm_vit, with_random_weights


@pytest.fixture
def unfused_vit() -> Any:
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    model = timm_vit()
    timm.layers.set_fused_attn(before)
    assert not model.blocks[0].attn.fused_attn
    return model


@pytest.mark.parametrize("method", METHODS)
def test_sdpa_equals_eager_on_bert(method: str) -> None:
    assert_close(attributed("BERT", method), attributed("BERT, eager", method), 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_sdpa_equals_eager_on_vit_of_transformers(method: str) -> None:
    eager = METHODS[method](hf_vit("eager")).attribute(images(), [1, 4, 0])

    # Its eager softmax runs in float32 whatever the model's precision, and LRP divides by sums
    # that nearly cancel.
    rounding = 1e-4 if method in MAGNIFY_ROUNDING else 1e-6
    assert_close(attributed("Transformers ViT", method), eager, rounding)


@pytest.mark.parametrize("method", METHODS)
def test_fused_equals_unfused_timm(method: str, unfused_vit: Any) -> None:
    unfused = METHODS[method](unfused_vit).attribute(images(), [1, 4, 0])

    assert_close(attributed("timm ViT", method), unfused, 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_boolean_equals_additive_mask(method: str) -> None:
    given = subject("nn.TransformerEncoder")
    (padding,) = given.extra
    additive = torch.zeros(padding.shape, dtype=torch.float64).masked_fill(padding, -torch.inf)

    def masked(embeddings: Tensor) -> Tensor:
        return _pooled(given.model, embeddings, additive, padding)

    result = METHODS[method](masked).attribute(given.inputs, given.target)
    assert_close(result, attributed("nn.TransformerEncoder", method), 1e-6)


def _pooled(model: Any, embeddings: Tensor, additive: Tensor, padding: Tensor) -> Tensor:
    tokens = model.encoder(embeddings, src_key_padding_mask=additive)
    kept = ~padding[..., None]
    return model.head((tokens * kept).sum(1) / kept.sum(1))


def test_the_fast_path_of_pytorch_is_off_within_explanations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fused encoder kernel runs outside of explanations, and not within."""
    model, x, runs = encoder(), drawn(3, 7, 16, seed=3), []
    kernel = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *a: (runs.append(1), kernel(*a))[1]
    )
    with torch.no_grad():
        plain = model(x)
        assert len(runs) == 2
        explained = GenericAttentionRelevance(model).attribute_tokens(x, 2)
        assert len(runs) == 2
        assert_close(model(x), plain, relative=0)

    model.train()
    assert_close(GenericAttentionRelevance(model).attribute_tokens(x, 2), explained)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_shared_keys_and_values_by_einsum(method: str, groups: int) -> None:
    """Multi-query and grouped attention: heads that share keys and values have no axis there."""
    parts = with_random_weights(nn.ModuleList(nn.Linear(16, n) for n in (16, 4 * groups, 16)))

    def model(x: Tensor, *, by_letters: bool) -> Tensor:
        query = parts[0](x).unflatten(-1, (groups, 4 // groups, 4))  # (b, i, g, h, d)
        shared = parts[1](x).unflatten(-1, (groups, 4))  # (b, j, g, d)
        if by_letters:
            scores = torch.einsum("bighd,bjgd->bghij", query, shared)
            attended = torch.einsum("bghij,bjgd->bighd", scores.softmax(-1), shared)
        else:
            shared = shared.permute(0, 2, 1, 3)[:, :, None]
            scores = query.permute(0, 2, 3, 1, 4) @ shared.transpose(-1, -2)
            attended = (scores.softmax(-1) @ shared).permute(0, 3, 1, 2, 4)
        return parts[2](x + attended.flatten(2)).mean(1)

    x = drawn(3, 5, 16, seed=6)
    first_layer = (
        partial(METHODS[method], start_layer=0) if "layer 1" in method else METHODS[method]
    )
    maps = [first_layer(partial(model, by_letters=b)).attribute(x, 1) for b in (False, True)]
    assert_close(*maps, 1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_options_of_scaled_dot_product_attention(method: str, causal: bool, grouped: bool) -> None:
    """Grouped heads, a causal mask and a scale equal the same attention written out."""
    parts = with_random_weights(nn.ModuleList(nn.Linear(16, n) for n in (16, 8, 8, 5)))

    def project(x: Tensor) -> Iterator[Tensor]:
        heads = (4, 2, 2) if grouped else (2, 1, 1)
        for part, count in zip(parts, heads, strict=False):
            yield split_heads(part(x), count)

    def fused(x: Tensor) -> Tensor:
        query, key, value = project(x)
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=0.3, enable_gqa=True
        )
        return parts[3](x + attended.transpose(1, 2).flatten(2)).mean(1)

    def written_out(x: Tensor) -> Tensor:
        query, key, value = project(x)
        key, value = (t.repeat_interleave(2, 1) for t in (key, value))
        scores = query @ key.transpose(-1, -2) * 0.3
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        attended = torch.softmax(scores, -1) @ value
        return parts[3](x + attended.transpose(1, 2).flatten(2)).mean(1)

    x = drawn(3, 5, 16, seed=6)
    first_layer = (
        partial(METHODS[method], start_layer=0) if "layer 1" in method else METHODS[method]
    )
    assert_close(fused(x).detach(), written_out(x).detach())
    assert_close(first_layer(fused).attribute(x, 1), first_layer(written_out).attribute(x, 1), 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_values_may_have_several_dimensions_of_features(method: str) -> None:
    """As the points that proteins' tokens attend to, in either order of the factors."""
    generator = torch.Generator().manual_seed(0)
    layers = torch.randn(4, 12, 12, generator=generator, dtype=torch.float64) / 4
    x = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)

    def attention(x: Tensor, *, points: bool, beside: bool) -> Tensor:
        q, k, v = (F.linear(x, layer).unflatten(2, (2, 6)) for layer in layers[:3])
        q, k, v = (part.transpose(1, 2).flatten(0, int(beside)) for part in (q, k, v))
        weights = (q @ k.mT).softmax(-1)
        if points:
            read = torch.einsum("...jpc,...ij->...pic", v.unflatten(-1, (3, 2)), weights)
            read = read.movedim(-3, -2).flatten(-2)
        else:
            read = weights @ v
        read = read.view(-1, 2, 5, 6).transpose(1, 2).flatten(2)
        return F.linear(read, layers[3])

    def model(x: Tensor, *, points: bool, beside: bool = False) -> Tensor:
        for _ in range(2):
            x = x + attention(x, points=points, beside=beside)
        return x.mean(1)

    found, beside, expected = (
        METHODS[method](partial(model, **how)).attribute(x, 1)
        for how in ({"points": True}, {"points": True, "beside": True}, {"points": False})
    )
    assert_close(found, expected, 1e-9)
    assert_close(beside, expected, 1e-9)
