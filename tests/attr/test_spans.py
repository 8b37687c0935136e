"""Several generated tokens explained together, and relevance that goes on through them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.errors import InvalidInputError
from tests.attr.subjects import METHODS, assert_close, drawn, with_random_weights
from tests.attr.test_generation import (
    CAUSAL,
    DECODERS,
    ENCODER_DECODERS,
    NEW,
    Captioner,
    bart,
    further,
    generated_by,
    gpt2,
    llama,
    prompt,
)

# What is carried back is linear in the scores, with nothing that depends on all of them together.
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


def of_decoder(name: str) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
    model = DECODERS[name]()
    ids, mask = prompt()
    sequences = generated_by(model, ids, mask)
    return model, ids, sequences, further(model, F.pad(mask, (0, NEW), value=1))


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("name", DECODERS)
def test_a_span_has_the_sum_of_what_its_tokens_have(name: str, method: str) -> None:
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
def test_a_span_of_one_token_is_that_token(name: str, method: str) -> None:
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


def test_one_answer_rather_than_another() -> None:
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
    # The answer is compared, and what lies before it in its own right.
    hops: Any = {"spans": [(2, 3)], "hops": 1, "include_generated": True}
    last = torch.tensor([[-100, -100, 12]])
    direct = explained(12, spans=[(2, 3)], include_generated=True)
    assert_close(sum_of(explained(last, **hops)), sum_of(direct), relative=1e-6)
    assert not torch.allclose(explained(last, **hops), explained(12, **hops))


@pytest.mark.parametrize("method", ["ConservativeLRP", "GenericAttentionRelevance", "full LRP"])
def test_generated_tokens_are_included(method: str) -> None:
    model, ids, sequences, named = of_decoder("Llama")
    explain = METHODS[method](model)

    result = explain.attribute_generated(
        ids, sequences, additional_forward_kwargs=named, include_generated=True
    )

    assert result.shape == (2, NEW, 7)
    for step in range(NEW):
        target: Any = [(3 + step, token) for token in sequences[:, 4 + step].tolist()]
        whole = explain.attribute(sequences, target, additional_forward_kwargs=named)
        assert_close(result[:, step], whole, relative=1e-7)
        assert result[:, step, 4 + step :].abs().max() == 0


def test_generated_tokens_of_a_decoder_stand_beside_the_inputs() -> None:
    model = bart()
    ids, mask = prompt()
    decoded = generated_by(model, ids, mask)
    arguments: Any = {
        "generated_as": "decoder_input_ids",
        "additional_forward_kwargs": {"attention_mask": mask},
        "spans": [(1, 3)],
        "include_generated": True,
    }
    explain = ConservativeLRP(model)

    direct = explain.attribute_generated({"input_ids": ids}, decoded, **arguments)
    assert {name: tuple(found.shape) for name, found in direct.items()} == {
        "input_ids": (2, 1, 4),
        "decoder_input_ids": (2, 1, NEW + 1),
    }
    hopped = explain.attribute_generated({"input_ids": ids}, decoded, hops=None, **arguments)
    assert_close(sum_of(hopped), sum_of(direct))
    assert hopped["decoder_input_ids"][..., 1:].abs().max() < 1e-12
    assert hopped["decoder_input_ids"][..., 0].abs().min() > 0  # the start token


def sum_of(maps: Any) -> Tensor:
    tensors = maps.values() if isinstance(maps, dict) else [maps]
    total: Tensor = sum(tensor.flatten(2).sum(2) for tensor in tensors)
    return total


@pytest.mark.parametrize("method", CAUSAL)
@pytest.mark.parametrize("name", DECODERS)
def test_hops_keep_the_sum(name: str, method: str) -> None:
    model, ids, sequences, named = of_decoder(name)
    explain = METHODS[method](model)
    arguments: Any = {
        "additional_forward_kwargs": named,
        "spans": [(1, 3), (2, 3)],
        "include_generated": True,
    }
    direct = explain.attribute_generated(ids, sequences, **arguments)
    left = direct[..., 4:].abs().sum(2)
    assert left.min() > 0 or method in ("AttentionGradCam", "RawAttention")

    for hops in (1, 2, None):
        result = explain.attribute_generated(ids, sequences, hops=hops, **arguments)

        assert result.shape == direct.shape
        assert_close(sum_of(result), sum_of(direct), relative=1e-6)
    # Maps of GradCAM may be clipped to nothing, and in a random model no input may speak for a
    # token by its gradient; then relevance stays where it is.
    if method not in ("AttentionGradCam", "gradient x input"):
        assert result[..., 4:].abs().max() < 1e-6 * direct.abs().max()


@pytest.mark.parametrize("method", ["AttnLRP", "ConservativeLRP", "AttentionRollout"])
def test_hops_by_hand(method: str) -> None:
    model, ids, sequences, named = of_decoder("GPT-2")
    explain = METHODS[method](model)
    arguments: Any = {"additional_forward_kwargs": named, "include_generated": True}
    each = explain.attribute_generated(ids, sequences, **arguments)

    for hops in (1, 2):
        result = explain.attribute_generated(ids, sequences, spans=[(2, 3)], hops=hops, **arguments)
        for sample in range(2):
            rows, expected = each[sample], each[sample, 2].clone()
            for _ in range(hops):
                sent, expected[4:] = expected[4:].clone(), 0
                for part, sign in ((sent.clamp(min=0), 1), (sent.clamp(max=0), -1)):
                    speaks = (part * sign @ rows).clamp(min=0)
                    if part.any():
                        expected += part.sum() * speaks / speaks.sum()
            assert_close(result[sample, 0], expected, relative=1e-5)


class Chain(nn.Module):
    """A decoder that looks up one earlier token at each step, and writes what belongs to it.

    Which token that is, its position says. From the prompt's third token, 3, it makes 6, of this 7
    and of this 8, each time with a 9 between them, which it makes of the prompt's last token.
    """

    LOOKED_AT = (0, 0, 0, 0, 2, 4, 5, 4, 7, 0)

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(10), freeze=True)
        where = F.one_hot(torch.tensor(self.LOOKED_AT), 10).float()
        self.register_buffer("where", (where - 1) * 30)
        written = torch.zeros(10, 10)
        for read, write in {3: 6, 6: 7, 7: 8, 5: 9}.items():
            written[read, write] = 1
        self.written = nn.Parameter(written)

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.embedding(ids).unsqueeze(1)
        length = ids.shape[1]
        mask = self.where[:length, :length] + torch.ones(length, length).tril().log()
        same = torch.zeros_like(tokens[..., :2])
        looked_up = F.scaled_dot_product_attention(same, same, tokens, attn_mask=mask)
        return (looked_up @ self.written).squeeze(1)


CHAIN = {
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "AttentionRollout": AttentionRollout,
    "full LRP": lambda model: TransformerAttribution(model, propagate_to_input=True),
}


@pytest.mark.parametrize("method", CHAIN)
def test_a_planted_chain(method: str) -> None:
    model = Chain()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    sequences = ids
    while sequences.shape[1] < 10:
        sequences = torch.cat([sequences, model(sequences)[:, -1:].argmax(2)], 1)
    assert sequences[0, 5:].tolist() == [6, 9, 7, 9, 8]
    explain = CHAIN[method](model)

    reached = [
        explain.attribute_generated(
            ids, sequences, spans=[(4, 5)], hops=hops, include_generated=True
        )[0, 0]
        for hops in (0, 1, 2, None)
    ]

    # The answer is made of the third generated token, 7, this of the first, 6, and this of 3.
    for relevance, place in zip(reached, (7, 5, 2, 2), strict=True):
        share = relevance / relevance.sum()
        assert_close(share, F.one_hot(torch.tensor(place), 10).float(), relative=1e-5)


def test_pixels_are_reached_through_words() -> None:
    model = with_random_weights(Captioner())
    pixels, sequences = drawn(2, 3, 8, 8), torch.tensor([[5, 9, 14, 7], [3, 4, 21, 8]])
    named = {"pixel_values": pixels, "input_ids": sequences[:, :2]}
    arguments: Any = {"generated_as": "input_ids", "spans": [(1, 2)], "include_generated": True}
    for explain in (ConservativeLRP(model), GenericAttentionRelevance(model)):
        direct = explain.attribute_generated(named, sequences, **arguments)
        hopped = explain.attribute_generated(named, sequences, hops=None, **arguments)

        assert direct["input_ids"][..., 2:].abs().max() > 0
        assert hopped["input_ids"][..., 2:].abs().max() == 0
        assert hopped["pixel_values"].shape == (2, 1, 3, 8, 8)
        assert_close(sum_of(hopped), sum_of(direct))


def test_what_generate_returns() -> None:
    model = llama()
    ids, mask = prompt()
    output = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert isinstance(output, transformers.generation.GenerateDecoderOnlyOutput)
    whole = {"attention_mask": F.pad(mask, (0, NEW), value=1)}

    def explained(generated: Any) -> Tensor:
        return ConservativeLRP(model).attribute_generated(
            ids, generated, additional_forward_kwargs=whole
        )

    assert torch.equal(explained(output), explained(output.sequences))


def test_the_model_runs_once_whatever_is_asked() -> None:
    model, ids, sequences, _ = of_decoder("Llama")
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))

    ConservativeLRP(model).attribute_generated(
        ids, sequences, spans=[(0, 2), (1, 3)], hops=None, include_generated=True
    )

    assert len(runs) == 1


IDS = torch.tensor([[5, 9, 14], [6, 7, 8]])
SEQUENCES = F.pad(IDS, (0, 2), value=11)


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([(0, 3)], r"spans\[0\], \(0, 3\), is empty or not within the 2 generated tokens"),
        ([(0, 1), (1, 1)], r"spans\[1\], \(1, 1\), is empty"),
        ([(3, 5)], r"Counted from the start of the sequence\? Then it is \(0, 2\)"),
        ([(-1, 1)], r"\(-1, 1\), is empty or not within"),
        ([slice(1, 4)], r"slice\(1, 4, None\), is empty or not within"),
        ([slice(0, 2, 2)], r"`spans` are a list of \(start, end\).*spans\[0\] is slice"),
        ([1], r"spans\[0\] is 1"),
        ([range(2)], r"spans\[0\] is range"),
        ([slice("a", 2)], r"spans\[0\] is slice"),
        ([(0.0, 2)], r"spans\[0\] is \(0\.0, 2\)"),
        ([(None, 2)], r"spans\[0\] is \(None, 2\)"),
        ((0, 2), r"spans\[0\] is 0"),
        ([], "`spans` is empty: leave it out"),
        (slice(0, 1), "got a slice"),
        (torch.ones(1, 3), r"2 samples and 2 generated tokens.*shape \(1, 3\)"),
        (torch.ones(3, 1, 2), r"shape \(3, 1, 2\)"),
        (torch.tensor([[1.0, torch.nan]]), "finite"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "is zero for all generated tokens of all samples"),
    ],
)
def test_spans_outside_of_what_was_generated_are_refused(spans: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        GenericAttentionRelevance(gpt2()).attribute_generated(IDS, SEQUENCES, spans=spans)


def test_hops_that_would_lose_relevance_are_refused() -> None:
    explain = GenericAttentionRelevance(gpt2())
    with pytest.raises(InvalidInputError, match="pass `include_generated=True`"):
        explain.attribute_generated(IDS, SEQUENCES, hops=1)
    for hops in (-1, 1.5, True):
        with pytest.raises(InvalidInputError, match="`hops` must be a number from 0 on"):
            explain.attribute_generated(IDS, SEQUENCES, hops=hops, include_generated=True)


def test_spans_that_look_ahead_are_refused() -> None:
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config)
    for spans in ([(0, 1)], [(0, 2)]):
        with pytest.raises(InvalidInputError, match="depend on later tokens"):
            ConservativeLRP(model).attribute_generated(IDS, SEQUENCES, spans=spans)
