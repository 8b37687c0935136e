"""Captum's tool for language models, with the methods of this package."""

import subprocess
import sys
from functools import cache
from typing import Any

import captum.attr
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
import transformers
from captum.attr import (
    LayerIntegratedGradients,
    LLMGradientAttribution,
    TextTemplateInput,
    TextTokenInput,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

import captum_transformer
from captum_transformer import ConservativeLRP, GenericAttentionRelevance
from captum_transformer.attr.llm import LLMTransformerAttribution
from captum_transformer.errors import InvalidInputError
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import with_random_weights
from tests.chat.kit import picture
from tests.chat.kits import llava, qwen3_vl
from tests.public_methods import OF_SCORES

mpl.use("Agg")
WORDS = "<unk> the cat sat on mat dog ran away from".split()
TEXT, SAID = "the cat sat on", torch.tensor([1, 5, 2])


@cache
def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def language_model() -> Any:
    config = transformers.GPT2Config(
        vocab_size=len(WORDS),
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return with_random_weights(transformers.GPT2LMHeadModel(config))


def log_probabilities_after_prompt(model: Any) -> Any:
    def forward(ids: Tensor, said: Tensor) -> Tensor:
        ids = torch.cat([ids, said], 1)
        return model(ids).logits[:, -1].log_softmax(-1)

    return forward


@pytest.mark.parametrize("method", METHODS)
def test_each_token_gets_what_the_method_says_of_its_log_probability(method: str) -> None:
    model, text = language_model(), TextTokenInput(TEXT, tokenizer())
    llm = LLMTransformerAttribution(METHODS[method](model), tokenizer())

    result = llm.attribute(text, target=SAID)

    assert result.token_attr.shape == (3, 4)
    assert result.input_tokens == TEXT.split()
    assert [token.strip() for token in result.output_tokens] == ["the", "mat", "cat"]
    assert_close(result.seq_attr, result.token_attr.sum(0))
    explain = METHODS[method](log_probabilities_after_prompt(model))
    for step, token in enumerate(SAID.tolist()):
        before = SAID[None, :step]
        alone = explain.attribute(text.to_model_input(), token, before)
        assert_close(result.token_attr[step : step + 1], alone)


@pytest.mark.parametrize("name", sorted(OF_SCORES))
def test_every_public_method_is_accepted(name: str) -> None:
    method = getattr(captum_transformer, name)
    LLMTransformerAttribution(method(language_model()), tokenizer())


def test_tokens_that_are_skipped_have_no_column() -> None:
    model = language_model()
    llm = LLMTransformerAttribution(ConservativeLRP(model), tokenizer())

    whole = llm.attribute(TextTokenInput(TEXT, tokenizer()), target=SAID)
    text = TextTokenInput(TEXT, tokenizer(), skip_tokens=["the", "on"])
    result = llm.attribute(text, target=SAID)

    assert result.input_tokens == ["cat", "sat"]
    assert_close(result.token_attr, whole.token_attr[:, 1:3])


@pytest.mark.parametrize(
    ("template", "values", "columns"),
    [
        ("{} cat {}", ["the", "sat on"], [[0], [2, 3]]),
        ("{what} sat on {where}", {"where": "mat", "what": "the cat"}, [[4], [0, 1]]),
        (lambda a, b: f"the {b} {b} {a}", ["cat", "dog"], [[3], [1, 2]]),
        ("{}the cat{}", ["", " sat"], [[], [2]]),
    ],
)
def test_values_of_a_template_have_the_sum_of_their_tokens(
    template: Any, values: Any, columns: list[list[int]]
) -> None:
    llm = LLMTransformerAttribution(ConservativeLRP(language_model()), tokenizer())
    text = TextTemplateInput(template, values)

    result = llm.attribute(text, target=SAID)

    each = llm.attribute(TextTokenInput(text.to_model_input(), tokenizer()), target=SAID)
    assert result.input_tokens == text.values
    assert result.output_tokens == each.output_tokens
    expected = [each.token_attr[:, places].sum(1) for places in columns]
    assert_close(result.token_attr, torch.stack(expected, 1))
    assert_close(result.seq_attr, result.token_attr.sum(0))


def test_values_of_a_template_that_belong_together() -> None:
    llm = LLMTransformerAttribution(ConservativeLRP(language_model()), tokenizer())
    values = ["the", "cat", "mat"]
    apart = llm.attribute(TextTemplateInput("{} {} sat on {}", values), target=SAID).token_attr
    text = TextTemplateInput("{} {} sat on {}", values, mask=[7, 3, 7])
    joined = llm.attribute(text, target=SAID).token_attr
    assert_close(joined[:, 1], apart[:, 1])
    for column in (0, 2):
        assert_close(joined[:, column], apart[:, 0] + apart[:, 2])


def test_templates_that_change_their_values_are_refused() -> None:
    llm = LLMTransformerAttribution(ConservativeLRP(language_model()), tokenizer())
    text = TextTemplateInput(lambda word: f"the {word.replace('dog', 'cat')} sat", ["dog"])
    with pytest.raises(InvalidInputError, match="the template changes them"):
        llm.attribute(text, target=SAID)


@pytest.mark.skipif(not hasattr(captum.attr, "ImageMaskInput"), reason="Captum before 0.9")
@pytest.mark.parametrize("make", [llava, qwen3_vl])
def test_segments_of_an_image(make: Any) -> None:
    kit = make()
    image = picture(64, 64)
    segments = torch.zeros(64, 64, dtype=torch.int32)
    segments[:, 32:] = 4
    llm = LLMTransformerAttribution(ConservativeLRP(kit.model), kit.processor.tokenizer)

    def explained(**masks: Any) -> Any:
        text = captum.attr.ImageMaskInput(image, processor_fn=lambda i: kit.prompt([i]), **masks)
        return llm.attribute(text, target=torch.tensor([5, 9]))

    halves = explained(mask=segments)
    assert halves.token_attr.shape == (2, 2)
    assert halves.input_tokens == ["image_feature_0", "image_feature_4"]
    assert len(halves.output_tokens) == 2
    whole = explained()
    assert_close(halves.token_attr.sum(1), whole.token_attr[:, 0], relative=1e-4)
    both = explained(mask_list=[segments == 4, torch.ones(64, 64)])
    assert_close(both.token_attr[:, 0], halves.token_attr[:, 1], relative=1e-4)
    assert_close(both.token_attr[:, 1], whole.token_attr[:, 0], relative=1e-4)

    batch = kit.prompt([image])
    sequence = torch.cat([batch["input_ids"], torch.tensor([[5, 9]])], 1)
    direct = ConservativeLRP(
        lambda input_ids, pixel_values, **named: kit.model(
            input_ids=input_ids, pixel_values=pixel_values[0], **named
        ).logits.log_softmax(-1)
    ).attribute_generated(
        {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"][None]},
        sequence,
        generated_as="input_ids",
        additional_forward_kwargs={
            name: F.pad(value, (0, 2), value=int(value[0, -1])) if value.shape[1] > 3 else value
            for name, value in batch.items()
            if name not in ("input_ids", "pixel_values")
        },
    )
    assert_close(whole.token_attr[:, 0], direct["pixel_values"][0].flatten(1).sum(1), relative=1e-4)


@pytest.mark.skipif(not hasattr(captum.attr, "ImageMaskInput"), reason="Captum before 0.9")
def test_images_without_a_processor_are_refused() -> None:
    llm = LLMTransformerAttribution(ConservativeLRP(language_model()), tokenizer())
    image = captum.attr.ImageMaskInput(picture(8, 8))
    with pytest.raises(InvalidInputError, match=r"`processor_fn`.*'pixel_values', got Image"):
        llm.attribute(image, target=SAID)


def test_what_the_model_generates_is_explained_and_drawn() -> None:
    model = language_model()
    method = GenericAttentionRelevance(model)
    llm = LLMTransformerAttribution(method, tokenizer())

    options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    result = llm.attribute(TextTokenInput(TEXT, tokenizer()), gen_args=options)

    assert result.token_attr.shape == (2, 4)
    figure, axis = result.plot_token_attr(show=False)
    texts = [label.get_text() for label in axis.get_yticklabels()]
    assert len(texts) == 2
    plt.close(figure)
    assert method.forward_func is model
    assert not model.training


def test_other_methods_keep_to_captums_own_tool() -> None:
    model = language_model()

    layer_method: Any = LayerIntegratedGradients(model, model.transformer.wte)
    with pytest.raises(AssertionError, match="does not support"):
        LLMTransformerAttribution(layer_method, tokenizer())
    with pytest.raises(AssertionError, match="does not support"):
        LLMGradientAttribution(GenericAttentionRelevance(model), tokenizer())


def test_it_is_imported_only_by_those_who_use_it() -> None:
    program = (
        "import sys, captum_transformer\n"
        "print([m for m in sys.modules if m in ('captum_transformer.attr.llm', 'transformers')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
