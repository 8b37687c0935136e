"""Relevance of generated tokens is returned, or passed on to the tokens that they came from."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from tests.attr.language_models import (
    CAUSAL,
    DECODERS,
    NEW,
    Captioner,
    bart,
    generated_by,
    of_decoder,
    prompt,
    sum_of,
)
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import drawn, with_random_weights


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


def test_generated_tokens_of_a_decoder_are_returned_beside_the_inputs() -> None:
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
    # Maps of GradCAM may be clipped to zero, and in a random model no input may have a positive
    # gradient; then relevance stays where it is.
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
    """A decoder that at each position reads one earlier token, and generates its successor.

    The third token of the prompt, 3, leads to 6, this to 7 and this to 8. Between them it generates
    9, from the last token of the prompt.
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

    # The answer comes from the third generated token, 7, this from the first, 6, and this from 3.
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


def test_the_model_runs_once_for_spans_and_hops() -> None:
    model, ids, sequences, _ = of_decoder("Llama")
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))

    ConservativeLRP(model).attribute_generated(
        ids, sequences, spans=[(0, 2), (1, 3)], hops=None, include_generated=True
    )

    assert len(runs) == 1
