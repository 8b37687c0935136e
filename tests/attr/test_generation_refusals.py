"""Masks, caches and windows that hide explained tokens are refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from captum_transformer import ConservativeLRP, GenericAttentionRelevance
from captum_transformer.errors import InvalidInputError
from tests.attr.language_models import NEW, bart, further, generated_by, gpt2, llama, prompt
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import with_random_weights


def padded_batch(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = prompt()
    return ids, generated_by(model, ids, mask), F.pad(mask, (0, NEW), value=1)


def test_a_cache_is_refused_unless_it_is_empty() -> None:
    model = llama()
    ids, sequences, mask = padded_batch(model)
    explain = ConservativeLRP(model)
    named: dict[str, Any] = {"attention_mask": mask}
    expected = explain.attribute_generated(ids, sequences, additional_forward_kwargs=named)

    cache = transformers.DynamicCache()
    named["past_key_values"] = cache
    result = explain.attribute_generated(ids, sequences, additional_forward_kwargs=named)
    assert_close(result, expected)

    named["past_key_values"] = model(ids, use_cache=True).past_key_values
    with pytest.raises(
        InvalidInputError,
        match=r"\['past_key_values'\] is a cache .* of 4 tokens.*pass all ids",
    ):
        explain.attribute_generated(ids, sequences, additional_forward_kwargs=named)


def test_a_cache_of_an_encoder_decoder_is_refused() -> None:
    model = bart()
    ids, mask = prompt()
    decoded = generated_by(model, ids, mask)
    past = model(ids, decoder_input_ids=decoded, use_cache=True).past_key_values
    with pytest.raises(InvalidInputError, match=r"is a cache with .* of 4 tokens"):
        GenericAttentionRelevance(model).attribute_generated(
            {"input_ids": ids},
            decoded,
            generated_as="decoder_input_ids",
            additional_forward_kwargs={"past_key_values": past},
        )


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1]], r"samples \[1\].*padded on the right"),
        ([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]], r"generated tokens of samples \[0, 1\]"),
        ([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 1]], r"generated tokens of samples \[1\]"),
    ],
)
def test_masks_that_hide_what_is_explained(mask: Any, said: str) -> None:
    model = llama()
    ids, sequences, _ = padded_batch(model)
    for given in (torch.tensor(mask), torch.tensor(mask).bool()):
        with pytest.raises(InvalidInputError, match=said):
            ConservativeLRP(model).attribute_generated(
                ids, sequences, additional_forward_kwargs={"attention_mask": given}
            )


def test_masks_may_end_with_the_text() -> None:
    model = llama()
    ids, sequences, _ = padded_batch(model)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0]])
    found, shorter = (
        ConservativeLRP(model).attribute_generated(
            ids, sequences[:, :end], additional_forward_kwargs={"attention_mask": mask[:, :end]}
        )
        for end in (7, 6)
    )
    assert_close(found[:, :-1], shorter, relative=1e-6)
    assert found.isfinite().all()


def windowed() -> Any:
    config = transformers.MistralConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    return with_random_weights(transformers.MistralForCausalLM(config))


def test_a_window_that_cuts_the_prompt_off() -> None:
    model = windowed()
    ids = torch.tensor([[5, 9, 14]])
    sequences = torch.tensor([[5, 9, 14, 7, 21, 8]])
    for explain in (ConservativeLRP(model), GenericAttentionRelevance(model)):
        with pytest.raises(
            InvalidInputError, match=r"token or span 2 of sample 0.*sliding window.*`hops=None`"
        ):
            explain.attribute_generated(ids, sequences)
        with pytest.raises(InvalidInputError, match="span 0 of sample 0"):
            explain.attribute_generated(ids, sequences, spans=[(2, 3)])

        arguments: Any = {"spans": [(2, 3)], "include_generated": True}
        direct = explain.attribute_generated(ids, sequences, **arguments)[0, 0]
        assert direct[:3].abs().max() == 0
        assert direct[3:5].abs().max() > 0
        within = explain.attribute_generated(ids, sequences, spans=[(0, 2)])
        assert within[0, 0, 1:].abs().max() > 0
        reached = explain.attribute_generated(ids, sequences, hops=None, **arguments)[0, 0]
        assert_close(reached.sum(), direct.sum(), relative=1e-6)


def test_a_forward_pass_that_is_not_that_of_generate() -> None:
    model = gpt2().float()
    ids, mask = prompt()
    output = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    named = further(model, F.pad(mask, (0, NEW), value=1))
    explain = GenericAttentionRelevance(model)
    found = explain.attribute_generated(ids, output, additional_forward_kwargs=named)
    assert found.shape == (2, NEW, 4)

    without = {"attention_mask": named["attention_mask"]}  # and no positions
    for arguments in (without, {}):
        with pytest.raises(InvalidInputError, match=r"not those that `generate` had.*position_ids"):
            explain.attribute_generated(ids, output, additional_forward_kwargs=arguments)
