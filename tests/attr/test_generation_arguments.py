"""Arguments that don't fit generated text are refused, with a reason and what to pass."""

from typing import Any

import pytest
import torch
import transformers

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
)
from captum_transformer.errors import (
    AmbiguousOutputError,
    InvalidInputError,
    InvalidTargetError,
    UnsupportedOperationError,
)
from tests.attr.language_models import IDS, SEQUENCES, VOCABULARY, bart, gpt2, llama
from tests.attr.tiny_models import drawn


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
def test_sequences_that_do_not_continue_the_prompt_are_refused(arguments: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        GenericAttentionRelevance(gpt2()).attribute_generated(*arguments)


def test_names_of_the_argument_that_takes_the_ids() -> None:
    explain = GenericAttentionRelevance(gpt2())

    with pytest.raises(InvalidInputError, match="give them by name, too"):
        explain.attribute_generated(IDS, SEQUENCES, generated_as="input_ids")
    # Models of Transformers ignore arguments that they don't know.
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
