"""Each generated token, from one forward pass: what attribution says of the sequence cut there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    ConservativeLRP,
    Contrast,
    GenericAttentionRelevance,
)
from captum_transformer.errors import (
    AmbiguousOutputError,
    InvalidInputError,
    InvalidTargetError,
    MixedSamplesError,
    UnsupportedOperationError,
)
from tests.attr.subjects import METHODS, assert_close, drawn, with_random_weights

CAUSAL = [method for method in METHODS if method != "AttentionGradCam, map"]
VOCABULARY, NEW = 30, 3
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        attn_implementation="eager",  # older ones can't make a mask in float64 for the others
        **SPECIAL,
    )
    return with_random_weights(transformers.GPT2LMHeadModel(config))


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=12,
        **SPECIAL,
    )
    return with_random_weights(transformers.LlamaForCausalLM(config))


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=12,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **SPECIAL,
    )
    return with_random_weights(transformers.BartForConditionalGeneration(config))


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return with_random_weights(transformers.T5ForConditionalGeneration(config))


DECODERS = {"GPT-2": gpt2, "Llama": llama}
ENCODER_DECODERS = {"BART": bart, "T5": t5}


def prompt() -> tuple[Tensor, Tensor]:
    """Ids of two texts of different lengths, padded on the left, and their mask."""
    ids = torch.tensor([[5, 9, 14, 7], [0, 0, 21, 8]])
    return ids, (ids != 0).long()


def generated_by(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model.generate(
        ids, attention_mask=mask, min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False
    )


def further(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """What ``generate`` gives the model beside the ids of a padded batch."""
    named = {"attention_mask": mask}
    if isinstance(model, transformers.GPT2LMHeadModel):
        named["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return named


class Moved(nn.Module):
    """A decoder with something that happens to the samples behind it."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.decoder, self.behind = gpt2(), behind

    def forward(self, input_ids: Tensor, **options: Any) -> Tensor:
        return self.behind(self.decoder(input_ids, **options).logits)


@pytest.mark.parametrize("method", ["GenericAttentionRelevance", "ConservativeLRP"])
def test_samples_that_are_put_back_are_explained_and_mixed_ones_refused(method: str) -> None:
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
def test_a_padded_sample_gives_what_it_gives_alone(name: str) -> None:
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


def test_relevance_of_logits_sums_up_over_the_whole_sequence() -> None:
    model = llama()
    ids, mask = prompt()
    sequences = generated_by(model, ids[:1], mask[:1])
    explain = ConservativeLRP(model)

    for length in (4, 5):
        result = explain.attribute_generated(sequences[:, :length], sequences)
        first = explain.attribute(sequences, (length - 1, int(sequences[0, length])))
        assert_close(result[:, 0], first[:, :length])


class Captioner(nn.Module):
    """Patches and words; each word sees all patches and the words before it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.words = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 24) for _ in range(2))
        for layer in self.layers:
            layer.self_attn.batch_first = True
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        patches = self.patches(pixel_values).flatten(2).mT
        tokens = torch.cat([patches, self.words(input_ids)], 1)
        mask = torch.ones(tokens.shape[1], tokens.shape[1]).tril().log().double()
        for layer in self.layers:
            tokens = layer(tokens, src_mask=mask)
        return self.head(tokens)


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


IDS = torch.tensor([[5, 9, 14], [6, 7, 8]])
SEQUENCES = F.pad(IDS, (0, 2), value=11)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((IDS, SEQUENCES[:, 3:]), "does not begin with the prompt"),
        ((IDS, SEQUENCES + 1), "does not begin with the prompt.*'decoder_input_ids'"),
        ((IDS, IDS), "Nothing was generated: `generated` has 3 ids per sample, of which 3"),
        ((IDS, SEQUENCES[:1]), r"token ids \(2, tokens\).* got \(1, 5\)"),
        ((IDS, SEQUENCES.repeat(2, 1)), "Of several sequences per prompt, repeat the prompt"),
        ((IDS, SEQUENCES.float()), "must be token ids"),
        ((IDS, SEQUENCES.tolist()), "got list"),
        ((IDS, {"logits": SEQUENCES}), "got dict"),
        ((drawn(2, 3, 16), SEQUENCES), r"only continue token ids .* \(2, 3, 16\)"),
        (((IDS, IDS), SEQUENCES), "There are 2 inputs: which one was continued"),
        (([], SEQUENCES), "got a list"),
    ],
    ids=lambda argument: "" if isinstance(argument, str) else None,
)
def test_what_was_not_generated_from_the_prompt_is_refused(arguments: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        GenericAttentionRelevance(gpt2()).attribute_generated(*arguments)


def test_names_of_what_takes_the_ids() -> None:
    explain = GenericAttentionRelevance(gpt2())

    with pytest.raises(InvalidInputError, match="give them by name, too"):
        explain.attribute_generated(IDS, SEQUENCES, generated_as="input_ids")
    # Models of Transformers overlook arguments that they don't have.
    model = gpt2()
    careless = GenericAttentionRelevance(lambda input_ids, **_: model(input_ids))
    with pytest.raises(InvalidInputError, match=r"passed as 'decoder_ids'.*`generated_as`"):
        careless.attribute_generated({"input_ids": IDS}, IDS, generated_as="decoder_ids")


def test_masks_that_end_with_the_prompt_are_refused() -> None:
    explain, mask = GenericAttentionRelevance(llama()), torch.ones_like(IDS)
    said = r" is as long as the prompt, \(2, 3\).*\(2, 5\).*pad\(mask, \(0, 2\), value=1\)"

    with pytest.raises(InvalidInputError, match=r"additional_forward_args\[0\]" + said):
        explain.attribute_generated(IDS, SEQUENCES, mask)
    with pytest.raises(InvalidInputError, match=r"kwargs\['attention_mask'\]" + said):
        explain.attribute_generated(
            IDS, SEQUENCES, additional_forward_kwargs={"attention_mask": mask}
        )


def test_outputs_without_logits_for_tokens_are_refused() -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=12, n_embd=16, n_layer=2, n_head=2, pad_token_id=0
    )
    classifier = transformers.GPT2ForSequenceClassification(config)
    with pytest.raises(AmbiguousOutputError, match=r"returned \(2, 2\).*lambda ids"):
        GenericAttentionRelevance(classifier).attribute_generated(IDS, SEQUENCES)


def test_tokens_that_do_not_exist_are_refused() -> None:
    explain = GenericAttentionRelevance(gpt2())

    with pytest.raises(InvalidTargetError, match="beyond the model's 30 logits"):
        explain.attribute_generated(IDS, SEQUENCES, rather_than=VOCABULARY)
    with pytest.raises(InvalidInputError, match=r"for each generated token, \(2, 2\)"):
        explain.attribute_generated(IDS, SEQUENCES, rather_than=torch.ones(2, 3).long())


def test_methods_that_look_at_later_tokens_are_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match=r"pooling='map' .* Use pooling='row'"):
        AttentionGradCam(gpt2(), pooling="map").attribute_generated(IDS, SEQUENCES)
    with pytest.raises(UnsupportedOperationError, match="propagation='flow'"):
        AttentionRollout(bart()).attribute_generated(
            {"input_ids": IDS}, IDS, generated_as="decoder_input_ids"
        )
