"""Models that attend between image and text, source and target, or only to the past."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import transformers

from captum_transformer.errors import InvalidTargetError
from tests.attr.kinds_of_attention import (
    FUSED,
    KINDS,
    attributed,
    attributed_tokens,
    streams,
    subject,
)
from tests.attr.subjects import (
    INPUT_METHODS,
    MAGNIFY_ROUNDING,
    METHODS,
    as_tuple,
    assert_close,
    shared_out,
)
from tests.attr.tiny_models import LENGTHS, mask

# These show the map of one attention call; an input that is none of its keys gets nothing.
ONE_CALL = frozenset(m for m in METHODS if m.startswith(("RawA", "AttentionG", "Partial")))
# Scaled by the whole map, in which padding tokens have rows of their own.
UNPADDABLE = "AttentionGradCam, map"
# An input value's relevance is shared by all tokens that were made from it, and those of DETR's
# backbone overlap: relevance of pixels that a token looks at is also its neighbours'.
OVERLAPPING = frozenset(m for m in INPUT_METHODS if m != "full LRP")


@pytest.fixture(autouse=True, scope="module")
def _masks_in_double() -> Iterator[None]:
    """Transformers 4 makes masks in the default precision, but of the smallest float64 number."""
    before = torch.get_default_dtype()
    if transformers.__version__.startswith("4."):
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "method"), shared_out(KINDS))
def test_says_something_of_every_input(name: str, method: str) -> None:
    given = as_tuple(subject(name).inputs)
    attributions = attributed(name, method)

    for attribution, tensor in zip(attributions, given, strict=True):
        assert attribution.shape == tensor.shape
        assert attribution.dtype == torch.float64
        assert attribution.isfinite().all()
    if method not in ONE_CALL:
        assert all(attribution.any() for attribution in attributions)


@pytest.mark.parametrize(("name", "method"), shared_out(KINDS))
def test_tokens_get_what_their_values_get(name: str, method: str) -> None:
    tokens = attributed_tokens(name, method)

    assert [t.shape for t in tokens] == [(3, count) for count in subject(name).tokens]
    for of_tokens, of_input in zip(tokens, attributed(name, method), strict=True):
        assert_close(of_tokens.sum(1), of_input.flatten(1).sum(1), 1e-6)


@pytest.mark.parametrize(("name", "method"), shared_out(KINDS))
def test_batch_equals_one_by_one(name: str, method: str) -> None:
    # The shortest one; alone, it would be given no patches of padding.
    i = 0 if name == "ViLT" and method == UNPADDABLE else 2
    alone = as_tuple(subject(name).samples([i]).attribute(METHODS[method]))

    assert_close(alone, tuple(a[[i]] for a in attributed(name, method)))


@pytest.mark.parametrize(("name", "method"), shared_out(FUSED))
def test_sdpa_equals_eager(name: str, method: str) -> None:
    # Their eager softmax runs in float32 whatever the model's precision, and LRP divides by sums
    # that nearly cancel.
    rounding = 1e-3 if method in MAGNIFY_ROUNDING else 1e-5
    double = 1e-6 if method in MAGNIFY_ROUNDING else 1e-9
    tolerance = double if KINDS[name].in_double else rounding

    assert_close(attributed(name, method), attributed(name, method, "eager"), tolerance)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method)
        for name, method in shared_out(KINDS)
        if KINDS[name].kept and not (name == "DETR" and method in OVERLAPPING)
    ],
)
def test_padding_has_no_relevance(name: str, method: str) -> None:
    for place, kept in KINDS[name].kept.items():
        assert not attributed_tokens(name, method)[place][kept() == 0].any()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method)
        for name, method in shared_out(KINDS)
        if KINDS[name].kept.get(0) is mask and method != UNPADDABLE
    ],
)
def test_padded_text_equals_unpadded(name: str, method: str) -> None:
    padded = attributed(name, method)
    for i, length in enumerate(LENGTHS):
        if length == max(LENGTHS):
            continue  # it has no padding
        one = subject(name).samples([i])
        inputs = {**one.inputs, "input_ids": one.inputs["input_ids"][:, :length]}
        named = {**one.named, "attention_mask": one.named["attention_mask"][:, :length]}
        whole = replace(one, inputs=inputs, named=named)
        text, *rest = as_tuple(whole.attribute(METHODS[method]))

        assert_close(padded[0][[i], :length], text, 1e-6)
        assert_close(tuple(p[[i]] for p in padded[1:]), tuple(rest), 1e-6)


ONE_CLASS = ("LXMERT", "ViLT", "VisualBERT", "BLIP, matching")
ONE_SCORE = ("BLIP, contrast", "CLIP", "SigLIP")
STEPWISE = [name for name in KINDS if name not in (*ONE_CLASS, *ONE_SCORE)]


@pytest.mark.parametrize("method", ["GenericAttentionRelevance", "ConservativeLRP"])
@pytest.mark.parametrize("name", STEPWISE)
def test_one_tuple_for_all_samples(name: str, method: str) -> None:
    """(position, token), or (query, class)."""
    given = subject(name)

    for one in ((1, 3), (0, 0)):
        assert_close(
            given.attribute(METHODS[method], target=one),
            given.attribute(METHODS[method], target=[one] * 3),
            relative=0,
        )


@pytest.mark.parametrize("name", STEPWISE)
def test_one_index_alone_asks_for_a_tuple(name: str) -> None:
    for target in (1, [1, 2, 3]):
        with pytest.raises(InvalidTargetError, match=r"tuples? of indices"):
            subject(name).attribute(METHODS["GenericAttentionRelevance"], target=target)


@pytest.mark.parametrize("method", ["GenericAttentionRelevance", "full LRP"])
@pytest.mark.parametrize("name", ONE_SCORE)
def test_scores_may_be_a_column(name: str, method: str) -> None:
    given = subject(name)
    as_column = replace(given, model=lambda **arguments: given.model(**arguments)[:, None])

    assert_close(as_column.attribute(METHODS[method]), attributed(name, method))


# Which tokens attend to which: each set to itself, and queries to keys of another one.
TIES = {
    "LXMERT": {
        "input_ids",
        "visual_feats+visual_pos",
        "input_ids to visual_feats+visual_pos",
        "visual_feats+visual_pos to input_ids",
    },
    "ViLT": {"input_ids+pixel_values"},
    "VisualBERT": {"input_ids+visual_embeds"},
    "BLIP, matching": {"pixel_values", "input_ids", "input_ids to pixel_values"},
    "BLIP, contrast": {"pixel_values", "input_ids"},
    "BLIP, answering": {
        "pixel_values",
        "input_ids",
        "input_ids to pixel_values",
        "decoder_input_ids",
        "decoder_input_ids to input_ids",
    },
    "CLIP": {"pixel_values", "input_ids"},
    "SigLIP": {"pixel_values", "learned to pixel_values", "input_ids"},
    "DETR": {"pixel_values", "learned", "learned to pixel_values"},
    "T5": {"input_ids", "decoder_input_ids", "decoder_input_ids to input_ids"},
    "BART": {"input_ids", "decoder_input_ids", "decoder_input_ids to input_ids"},
    "Whisper": {"input_features", "decoder_input_ids", "decoder_input_ids to input_features"},
}


@pytest.mark.parametrize("name", KINDS)
def test_streams(name: str) -> None:
    for attention in KINDS[name].attentions:
        assert set(streams(name, attention)) == TIES.get(name, {"input_ids"})


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BART"])
def test_later_tokens_have_no_relevance(name: str) -> None:
    for method in METHODS.values():
        written = as_tuple(subject(name).attribute(method, target=(1, 5)))[-1]
        assert not written[:, 2:].any()
