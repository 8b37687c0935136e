"""Several generated tokens are explained together, with weights and contrasts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_transformer import AttentionRollout, GenericAttentionRelevance
from tests.attr.language_models import (
    CAUSAL,
    DECODERS,
    ENCODER_DECODERS,
    generated_by,
    of_decoder,
    prompt,
    sum_of,
)
from tests.attr.subjects import METHODS, assert_close

# Relevance is linear in the scores that are explained.
LINEAR = [
    "AttnLRP",
    "AttnLRP, gamma",
    "ConservativeLRP",
    "GIM",
    "gradient x input",
    "AttentionRollout",
    "RawAttention",
]
WEIGHTS = torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.0, 2.0]])


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("name", DECODERS)
def test_a_span_has_the_sum_of_its_tokens(name: str, method: str) -> None:
    model, ids, sequences, named = of_decoder(name)
    explain = METHODS[method](model)
    each = explain.attribute_generated(ids, sequences, additional_forward_kwargs=named)

    result = explain.attribute_generated(
        ids, sequences, additional_forward_kwargs=named, spans=WEIGHTS
    )

    assert result.shape == (2, 2, 4)
    assert_close(result, torch.einsum("st,ntp->nsp", WEIGHTS.double(), each), relative=1e-6)


@pytest.mark.parametrize("method", CAUSAL)
@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_a_span_of_one_token_equals_that_token(name: str, method: str) -> None:
    model = (DECODERS | ENCODER_DECODERS)[name]()
    ids, mask = prompt()
    generated = generated_by(model, ids, mask)
    explain = METHODS[method](model)
    if method == "AttentionRollout":
        explain = AttentionRollout(model, propagation="flow")
    named: dict[str, Any] = {}
    if name in ENCODER_DECODERS:
        named = {"generated_as": "decoder_input_ids"}
    for others in (None, 11):
        named["rather_than"] = others
        each = explain.attribute_generated({"input_ids": ids}, generated, **named)

        spans = [(0, 1), slice(1, 2), slice(-1, None)]
        result = explain.attribute_generated({"input_ids": ids}, generated, spans=spans, **named)

        assert_close(result["input_ids"], each["input_ids"], relative=1e-6)


def test_generic_attention_relevance_of_a_span_by_matrices() -> None:
    model, ids, sequences, named = of_decoder("GPT-2")
    explain = GenericAttentionRelevance(model)

    result = explain.attribute_generated(
        ids, sequences, additional_forward_kwargs=named, spans=WEIGHTS
    )

    for row, weights in enumerate(WEIGHTS.double()):
        output = model(sequences, **named, output_attentions=True)
        logits = output.logits[:, 3:-1].gather(2, sequences[:, 4:, None]).squeeze(2)
        score = (logits * weights).sum()
        slopes = torch.autograd.grad(score, output.attentions)
        relevance = torch.eye(7).double().expand(2, 7, 7)
        for attention, slope in zip(output.attentions, slopes, strict=True):
            relevance = relevance + (attention * slope).relu().mean(1) @ relevance
        expected = torch.einsum("t,ntp->np", weights, (relevance - torch.eye(7))[:, 3:6])
        assert_close(result[:, row], expected.detach()[:, :4], relative=1e-6)


@pytest.mark.parametrize("method", ["full LRP", "ConservativeLRP", "GenericAttentionRelevance"])
def test_weights_of_samples_and_of_both_signs(method: str) -> None:
    model, ids, sequences, named = of_decoder("Llama")
    explain = METHODS[method](model)
    signed = torch.tensor([[[1.0, 0.0, -2.0]], [[0.0, 1.0, 0.0]]])

    result = explain.attribute_generated(
        ids, sequences, additional_forward_kwargs=named, spans=signed
    )

    parts = [
        explain.attribute_generated(
            ids, sequences, additional_forward_kwargs=named, spans=(signed * sign).clamp(min=0)
        )
        for sign in (1, -1)
        if method != "GenericAttentionRelevance"
    ]
    assert result.abs().amax(2).min() > 0
    if parts:
        assert_close(result, parts[0] - parts[1], relative=1e-6)
    if method != "full LRP":  # magnifies the rounding of Llama's rotations
        alone = explain.attribute_generated(ids[1:, 2:], sequences[1:, 2:], spans=signed[1:])
        assert_close(result[1:, :, 2:], alone, relative=1e-5)


def test_a_span_rather_than_another() -> None:
    model, ids, sequences, named = of_decoder("Llama")
    others = torch.tensor([[11, 12, 13]])
    for method in ("full LRP", "AttnLRP"):
        explain = METHODS[method](model)
        arguments: Any = {"additional_forward_kwargs": named, "spans": [(1, 3)]}
        result = explain.attribute_generated(ids, sequences, rather_than=others, **arguments)
        each = explain.attribute_generated(
            ids, sequences, rather_than=others, additional_forward_kwargs=named
        )
        if method == "AttnLRP":
            assert_close(result[:, 0], each[:, 1:].sum(1), relative=1e-6)
        own = explain.attribute_generated(ids, sequences, **arguments)
        assert not torch.allclose(result, own)


@pytest.mark.parametrize("method", ["AttnLRP", "full LRP", "GenericAttentionRelevance"])
def test_only_some_tokens_rather_than_others(method: str) -> None:
    model, ids, sequences, named = of_decoder("Llama")
    explain = METHODS[method](model)

    def explained(others: Any, **arguments: Any) -> Tensor:
        return explain.attribute_generated(
            ids, sequences, rather_than=others, additional_forward_kwargs=named, **arguments
        )

    result = explained(torch.tensor([[-100, 12, -100]]))
    assert_close(result[:, 1], explained(12)[:, 1], relative=1e-6)
    assert_close(result[:, [0, 2]], explained(None)[:, [0, 2]], relative=1e-6)
    # Only the answer is compared with another token, not the tokens before it.
    hops: Any = {"spans": [(2, 3)], "hops": 1, "include_generated": True}
    last = torch.tensor([[-100, -100, 12]])
    direct = explained(12, spans=[(2, 3)], include_generated=True)
    assert_close(sum_of(explained(last, **hops)), sum_of(direct), relative=1e-6)
    assert not torch.allclose(explained(last, **hops), explained(12, **hops))
