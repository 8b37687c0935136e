"""Each generated token is explained as the target at its position, in one forward pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    ConservativeLRP,
    Contrast,
    GenericAttentionRelevance,
)
from captum_transformer.errors import AmbiguousOutputError, MixedSamplesError
from tests.attr.language_models import (
    CAUSAL,
    DECODERS,
    ENCODER_DECODERS,
    NEW,
    VOCABULARY,
    Captioner,
    further,
    generated_by,
    gpt2,
    llama,
    prompt,
)
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import drawn, with_random_weights


class Moved(nn.Module):
    """A decoder whose logits are changed across samples."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.decoder, self.behind = gpt2(), behind

    def forward(self, input_ids: Tensor, **options: Any) -> Tensor:
        return self.behind(self.decoder(input_ids, **options).logits)


@pytest.mark.parametrize("method", ["GenericAttentionRelevance", "ConservativeLRP"])
def test_samples_may_change_places_but_not_be_mixed(method: str) -> None:
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
    sequences = generated_by(gpt2(), ids, None)
    moved, mixed = (
        METHODS[method](Moved(behind))
        for behind in (
            lambda logits: logits.roll(1, 0).roll(-1, 0),
            lambda logits: logits + logits.roll(1, 0),
        )
    )
    expected = METHODS[method](gpt2()).attribute_generated(ids, sequences)
    assert_close(moved.attribute_generated(ids, sequences), expected)
    with pytest.raises(MixedSamplesError):
        mixed.attribute_generated(ids, sequences)


@pytest.mark.parametrize("method", CAUSAL)
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_token_by_token(name: str, method: str) -> None:
    model = DECODERS[name]()
    ids, mask = prompt()
    sequences = generated_by(model, ids, mask)
    whole = F.pad(mask, (0, NEW), value=1)
    explain = METHODS[method](model)

    result = explain.attribute_generated(
        ids, sequences, additional_forward_kwargs=further(model, whole)
    )

    assert result.shape == (2, NEW, 4)
    assert result.is_contiguous()
    assert result[1, :, :2].abs().max() == 0  # padding gets no relevance
    for step in range(NEW):
        length = 4 + step
        alone = explain.attribute(
            sequences[:, :length],
            [(length - 1, token) for token in sequences[:, length].tolist()],
            additional_forward_kwargs=further(model, whole[:, :length]),
        )
        # GradCAM clips a layer's map that speaks against the token to nothing.
        assert alone.abs().max() > 0 or method == "AttentionGradCam"
        assert_close(result[:, step], alone[:, :4], relative=1e-7)


@pytest.mark.parametrize("method", CAUSAL)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_token_by_token(name: str, method: str) -> None:
    model = ENCODER_DECODERS[name]()
    ids, mask = prompt()
    decoded = generated_by(model, ids, mask)
    explain = METHODS[method](model)
    if method == "AttentionRollout":
        explain = AttentionRollout(model, propagation="flow")

    result = explain.attribute_generated(
        {"input_ids": ids},
        decoded,
        generated_as="decoder_input_ids",
        additional_forward_kwargs={"attention_mask": mask},
    )

    assert list(result) == ["input_ids"]
    assert result["input_ids"].shape == (2, NEW, 4)
    assert result["input_ids"][1, :, :2].abs().max() == 0
    for step in range(NEW):
        alone = explain.attribute(
            {"input_ids": ids, "decoder_input_ids": decoded[:, : step + 1]},
            [(step, token) for token in decoded[:, step + 1].tolist()],
            additional_forward_kwargs={"attention_mask": mask},
        )
        assert_close(result["input_ids"][:, step], alone["input_ids"], relative=1e-7)


@pytest.mark.parametrize("method", ["ConservativeLRP", "GenericAttentionRelevance"])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_the_model_runs_once(name: str, method: str) -> None:
    model = (DECODERS | ENCODER_DECODERS)[name]()
    ids, mask = prompt()
    generated = generated_by(model, ids, mask)
    named = {} if name in DECODERS else {"generated_as": "decoder_input_ids"}
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))

    METHODS[method](model).attribute_generated({"input_ids": ids}, generated, **named)

    assert len(runs) == 1


@pytest.mark.parametrize("name", DECODERS)
def test_a_padded_sample_has_the_map_that_it_has_alone(name: str) -> None:
    model = DECODERS[name]()
    ids, mask = prompt()
    sequences = generated_by(model, ids, mask)
    whole = further(model, F.pad(mask, (0, NEW), value=1))
    explain = GenericAttentionRelevance(model)

    result = explain.attribute_generated(ids, sequences, additional_forward_kwargs=whole)
    alone = explain.attribute_generated(ids[1:, 2:], sequences[1:, 2:])
    assert_close(result[1:, :, 2:], alone, relative=1e-6)  # Llama's rotations are in float32


@pytest.mark.parametrize("method", CAUSAL)
def test_one_token_rather_than_another_at_each_step(method: str) -> None:
    model = gpt2()
    ids, mask = prompt()
    ids, mask = ids[:1], mask[:1]
    sequences = generated_by(model, ids, mask)
    others = torch.tensor([[11, 12, 13]])
    explain = METHODS[method](model)

    result = explain.attribute_generated(ids, sequences, rather_than=others)

    contrasts: list[Any] = [
        Contrast((3 + step, int(sequences[0, 4 + step])), (3 + step, int(others[0, step])))
        for step in range(NEW)
    ]
    for step, alone in enumerate(explain.attribute_targets(sequences, contrasts)):
        assert_close(result[:, step], alone[:, :4], relative=1e-7)
    same = explain.attribute_generated(ids, sequences, rather_than=11)
    assert_close(same[:, :1], result[:, :1], relative=1e-12)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_one_token_rather_than_another_of_a_decoder(name: str) -> None:
    model = ENCODER_DECODERS[name]()
    ids, mask = prompt()
    decoded, named = generated_by(model, ids, mask), {"attention_mask": mask}
    explain = GenericAttentionRelevance(model)

    result = explain.attribute_generated(
        {"input_ids": ids},
        decoded,
        generated_as="decoder_input_ids",
        rather_than=11,
        additional_forward_kwargs=named,
    )

    for step in range(NEW):
        cut = {"input_ids": ids, "decoder_input_ids": decoded[:, : step + 1]}
        target: Any = [Contrast((step, t), (step, 11)) for t in decoded[:, step + 1].tolist()]
        alone = explain.attribute(cut, target, additional_forward_kwargs=named)
        assert_close(result["input_ids"][:, step], alone["input_ids"], relative=1e-7)


def test_logits_of_the_last_tokens_are_enough() -> None:
    model = llama()
    ids, mask = prompt()
    sequences = generated_by(model, ids, mask)
    explain = ConservativeLRP(model)

    result = explain.attribute_generated(
        ids, sequences, additional_forward_kwargs={"logits_to_keep": NEW + 1}
    )
    assert_close(result, explain.attribute_generated(ids, sequences))
    with pytest.raises(AmbiguousOutputError, match=rf"\(2, {NEW}, {VOCABULARY}\)"):
        explain.attribute_generated(
            ids, sequences, additional_forward_kwargs={"logits_to_keep": NEW}
        )


def test_a_token_has_the_same_map_wherever_the_prompt_ends() -> None:
    model = llama()
    ids, mask = prompt()
    sequences = generated_by(model, ids[:1], mask[:1])
    explain = ConservativeLRP(model)

    for length in (4, 5):
        result = explain.attribute_generated(sequences[:, :length], sequences)
        first = explain.attribute(sequences, (length - 1, int(sequences[0, length])))
        assert_close(result[:, 0], first[:, :length])


@pytest.mark.parametrize("method", ["ConservativeLRP", "GenericAttentionRelevance", "full LRP"])
def test_pixels_beside_the_text_that_is_continued(method: str) -> None:
    model = with_random_weights(Captioner())
    pixels, sequences = drawn(2, 3, 8, 8), torch.tensor([[5, 9, 14, 7], [3, 4, 21, 8]])
    named = {"pixel_values": pixels, "input_ids": sequences[:, :2]}
    explain = METHODS[method](model)

    result = explain.attribute_generated(named, sequences, generated_as="input_ids")

    assert result["pixel_values"].shape == (2, 2, 3, 8, 8)
    assert result["input_ids"].shape == (2, 2, 2)
    # The logits of the last word are those of the last token, behind four patches.
    cut = {"pixel_values": pixels, "input_ids": sequences[:, :3]}
    alone = explain.attribute(cut, [(4 + 2, token) for token in sequences[:, 3].tolist()])
    assert_close(result["pixel_values"][:, 1], alone["pixel_values"], relative=1e-7)
    assert_close(result["input_ids"][:, 1], alone["input_ids"][:, :2], relative=1e-7)


def test_forms_of_the_prompt() -> None:
    model = llama()
    ids, mask = prompt()
    sequences = generated_by(model, ids, mask)
    explain = AttentionRollout(model)

    result = explain.attribute_generated(ids, sequences)
    in_tuple = explain.attribute_generated((ids,), sequences)
    assert isinstance(in_tuple, tuple)
    named = explain.attribute_generated({"input_ids": ids}, sequences)
    again = explain.attribute_generated({"input_ids": ids}, sequences, generated_as="input_ids")
    for form in (in_tuple[0], named["input_ids"], again["input_ids"]):
        assert torch.equal(form, result)


def test_in_inference_mode() -> None:
    model = gpt2()
    ids, mask = prompt()
    expected = GenericAttentionRelevance(model).attribute_generated(
        ids, generated_by(model, ids, mask)
    )
    with torch.inference_mode():
        ids, mask = prompt()
        sequences = generated_by(model, ids, mask)
        result = GenericAttentionRelevance(model).attribute_generated(ids, sequences)
    assert torch.equal(result, expected)


def test_the_output_of_generate_is_accepted() -> None:
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
