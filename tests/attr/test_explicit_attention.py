"""Models with attention modules have the maps of the papers, computed from explicit matrices."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttentionRollout, GenericAttentionRelevance, RawAttention
from tests.attr.explicit_attention import Explicit, explicit_encoder_layer, split_heads
from tests.attr.subjects import assert_close, subject
from tests.attr.tiny_models import (
    bert,
    drawn,
    encoder,
    ids,
    mask,
    torchvision_vit,
    with_random_weights,
)


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
    """Full matrices and the flow from the output have the same result."""
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
