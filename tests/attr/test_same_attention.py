"""However a model computes its attention, the attribution is the same, and is the papers' row."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import AttentionRollout, GenericAttentionRelevance, RawAttention
from tests.attr.subjects import MAGNIFY_ROUNDING, METHODS, assert_close, attributed, subject
from tests.attr.tiny_models import (
    bert,
    drawn,
    encoder,
    hf_vit,
    ids,
    images,
    mask,
    timm_vit,
    torchvision_vit,
    with_random_weights,
)


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


# Attention with explicit matrices, from the modules' weights alone.


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


class Explicit:
    """Self-attention that keeps its probabilities, so that autograd gives their gradient."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, attention: nn.MultiheadAttention, x: Tensor, bias: Tensor) -> Tensor:
        """Runs a ``nn.MultiheadAttention`` on ``(samples, tokens, features)``."""
        projected = x @ attention.in_proj_weight.T + attention.in_proj_bias
        query, key, value = (split_heads(t, attention.num_heads) for t in projected.chunk(3, -1))
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5 + bias
        probabilities = scores.exp() / scores.exp().sum(-1, keepdim=True)
        self.maps.append(probabilities)
        joined = (probabilities @ value).transpose(1, 2).flatten(2)
        return joined @ attention.out_proj.weight.T + attention.out_proj.bias

    def generic_relevance(self, scores: Tensor) -> Tensor:
        """ICCV 2021: ``R <- R + E[(dA * A)+] R``, and of its end ``R - I``."""
        gradients = torch.autograd.grad(scores.sum(), self.maps, retain_graph=True)
        product = torch.eye(self.maps[0].shape[-1], dtype=torch.float64)
        for probabilities, gradient in zip(self.maps, gradients, strict=True):
            product = product + (gradient * probabilities).clamp(min=0).mean(1) @ product
        return product.detach() - torch.eye(product.shape[-1])

    def rollout(self) -> Tensor:
        """The product of the maps with the skips beside them, rows normalised.

        Each layer leaves a half of what passes no attention, which is left out.
        """
        eye = product = torch.eye(self.maps[0].shape[-1], dtype=torch.float64)
        for probabilities in self.maps:
            layer = eye + probabilities.mean(1)
            product = layer / layer.sum(-1, keepdim=True) @ product
        return product.detach() - eye / 2 ** len(self.maps)


def explicit_encoder_layer(
    layer: nn.TransformerEncoderLayer, x: Tensor, explicit: Explicit, bias: Tensor
) -> Tensor:
    def feed_forward(tokens: Tensor) -> Tensor:
        return layer.linear2(F.relu(layer.linear1(tokens)))

    if layer.norm_first:
        x = x + explicit(layer.self_attn, layer.norm1(x), bias)
        return x + feed_forward(layer.norm2(x))
    x = layer.norm1(x + explicit(layer.self_attn, x, bias))
    return layer.norm2(x + feed_forward(x))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"batch_first": False}], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_transformer_encoder(options: dict[str, bool], padded: bool, training: bool) -> None:
    model, x = encoder(**options), drawn(3, 7, 16, seed=3)
    padding = mask() == 0 if padded else torch.zeros(3, 7, dtype=torch.bool)
    bias = torch.zeros(3, 7, dtype=torch.float64).masked_fill(padding, -torch.inf)[:, None, None]

    explicit, tokens = Explicit(), x
    for layer in model.encoder.layers:
        tokens = explicit_encoder_layer(layer, tokens, explicit, bias)
    kept = (~padding).double()[..., None]
    scores = model.head((tokens * kept).sum(1) / kept.sum(1))[:, 2]
    readout = (kept / kept.sum(1, keepdim=True)).transpose(1, 2)

    model.train(training)
    extra = padding if padded else None
    for method, matrix in (
        (
            partial(GenericAttentionRelevance, pooled_evidence=False),
            explicit.generic_relevance(scores),
        ),
        (AttentionRollout, explicit.rollout()),
    ):
        result = method(model).attribute_tokens(x, 2, extra)
        assert_close(result, (readout @ matrix).squeeze(1))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_single_transformer_encoder_layer(batch_first: bool, norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, norm_first=norm_first)
    layer = with_random_weights(layer)
    x = drawn(3, 5, 16, seed=4)

    def model(tokens: Tensor) -> Tensor:
        if batch_first:
            return layer(tokens)[:, 1]
        return layer(tokens.transpose(0, 1))[1]

    explicit = Explicit()
    expected_output = explicit_encoder_layer(layer, x, explicit, torch.zeros(()))
    with torch.no_grad():
        assert_close(model(x), expected_output[:, 1].detach())
    scores = expected_output[:, 1, 3]

    for method, matrix in (
        (GenericAttentionRelevance, explicit.generic_relevance(scores)),
        (AttentionRollout, explicit.rollout()),
    ):
        assert_close(method(model).attribute_tokens(x, 3), matrix[:, 1])


def test_fast_path_of_pytorch_would_run_and_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused encoder kernel runs outside of the explanation and gives way within it."""
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


def test_torchvision_vit() -> None:
    model, pixels = torchvision_vit(), drawn(3, 3, 8, 8, seed=1)

    explicit = Explicit()
    tokens = model.conv_proj(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(3, -1, -1), tokens], 1)
    tokens = tokens + model.encoder.pos_embedding
    for block in model.encoder.layers:
        tokens = tokens + explicit(block.self_attention, block.ln_1(tokens), torch.zeros(()))
        tokens = tokens + block.mlp(block.ln_2(tokens))
    scores = model.heads(model.encoder.ln(tokens)[:, 0])
    with torch.no_grad():
        assert_close(model(pixels), scores.detach())

    for method, matrix in (
        (GenericAttentionRelevance, explicit.generic_relevance(scores[:, 3])),
        (AttentionRollout, explicit.rollout()),
    ):
        assert_close(method(model).attribute_tokens(pixels, 3), matrix[:, 0, 1:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_with_explicit_matrices(attention: str) -> None:
    model, kept = bert(attention), mask()
    bias = torch.zeros(3, 7, dtype=torch.float64).masked_fill(kept == 0, -torch.inf)[:, None, None]

    maps: list[Tensor] = []
    x = model.bert.embeddings(ids())
    for layer in model.bert.encoder.layer:
        attend = layer.attention.self
        query, key, value = (
            split_heads(part(x), 2) for part in (attend.query, attend.key, attend.value)
        )
        maps.append(torch.softmax(query @ key.transpose(-1, -2) / 8**0.5 + bias, -1))
        x = layer.attention.output((maps[-1] @ value).transpose(1, 2).flatten(2), x)
        x = layer.output(layer.intermediate(x), x)
    scores = model.classifier(model.bert.pooler(x))[:, 1]
    explicit = Explicit()
    explicit.maps = maps

    for method, matrix in (
        (GenericAttentionRelevance, explicit.generic_relevance(scores)),
        (AttentionRollout, explicit.rollout()),
    ):
        result = method(model).attribute(ids(), 1, (kept,))
        assert_close(result, matrix[:, 0])


def test_rows_of_relevance_maps_are_the_token_attributions() -> None:
    """Full matrices and the flow from the output are two ways to one result."""
    for name, readout in (
        ("timm ViT", lambda r: r[:, 0, 1:]),
        ("timm ViT, registers", lambda r: r[:, 3:, 3:].mean(1)),
        ("timm DeiT, distilled", lambda r: (r[:, 0, 2:] + r[:, 1, 2:]) / 2),
        ("BERT", lambda r: r[:, 0]),
        ("GPT-2", lambda r: r[:, -1]),
    ):
        given = subject(name)
        method = partial(GenericAttentionRelevance, pooled_evidence=False)
        (matrix,) = (
            method(given.model).relevance_maps(given.inputs, given.target, given.extra).values()
        )
        assert_close(given.attribute_tokens(method), readout(matrix))


def test_heads_may_be_kept_apart() -> None:
    given = subject("BERT, eager")
    for layer in (0, -1):
        explain = RawAttention(given.model, layer=layer)
        (heads,) = explain.relevance_maps(
            given.inputs, given.target, given.extra, average_heads=False
        ).values()
        with torch.no_grad():
            output = given.model(given.inputs, *given.extra, output_attentions=True)
        assert_close(heads, output.attentions[layer])
        (average,) = explain.relevance_maps(given.inputs, given.target, given.extra).values()
        assert_close(average, heads.mean(1))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_shared_keys_and_values_by_einsum(method: str, groups: int) -> None:
    """Heads that share keys and values have no axis there: multi-query and grouped attention."""
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
    """Grouped heads, causality and a scale of its own are what they are written out."""
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
