"""Inputs of a conversation are continued for the answer, and refused if they don't belong to it."""

from typing import Any

import numpy as np
import pytest
import torch

from captum_transformer.attr.beside import continued
from captum_transformer.chat import ChatExplainer
from captum_transformer.errors import InvalidInputError
from tests.chat.kit import picture
from tests.chat.kits import gpt2, intern_vl, llava, qwen2_audio


def test_images_that_are_not_those_of_the_conversation_are_refused() -> None:
    kit = intern_vl()
    images = [picture(48, 32), picture(30, 40, 1)]
    prompt = kit.prompt(images)
    generated = kit.generate(prompt)
    explainer = ChatExplainer(kit.model, kit.processor)
    for wrong in (images[0], ["cat.jpg"], np.array(images[0])):
        with pytest.raises(InvalidInputError, match="must be a list of PIL images"):
            explainer(prompt, generated, wrong)
    for others in (images[::-1], images[:1]):
        with pytest.raises(InvalidInputError, match="Give all images of the conversation"):
            explainer(prompt, generated, others)
    other = ChatExplainer(kit.model, kit.processor, process=lambda given: kit.pixels(given) * 2)
    with pytest.raises(InvalidInputError, match="`process=`"):
        other(prompt, generated, images)


def test_prompts_that_cannot_be_continued_are_refused() -> None:
    kit = llava()
    image = picture(20, 20)
    prompt = dict(kit.prompt([image]))
    explainer = ChatExplainer(kit.model, kit.processor)
    several = {**prompt, "input_ids": prompt["input_ids"].repeat(2, 1)}
    with pytest.raises(InvalidInputError, match=r"shape \(1, tokens\), got \(2, 24\)"):
        explainer(several, prompt["input_ids"], [image])
    for place in (0, -1):
        mask = prompt["attention_mask"].clone()
        mask[0, place] = 0
        with pytest.raises(InvalidInputError, match="The prompt is padded"):
            explainer({**prompt, "attention_mask": mask}, kit.generate(prompt), [image])
    answer = kit.generate(prompt)
    for wrong in (answer[:, 24:], answer[:, :24], answer.flip(1)):
        with pytest.raises(InvalidInputError, match="do not begin with the 24 of the prompt"):
            explainer(prompt, wrong, [image])
    with pytest.raises(InvalidInputError, match=r"pass one as `sequences\[i : i \+ 1\]`"):
        explainer(prompt, answer.repeat(2, 1), [image])
    with pytest.raises(InvalidInputError, match="`rather_than` must be token ids, got 'cat'"):
        explainer(prompt, answer, [image], rather_than="cat")
    only_words = ChatExplainer(kit.model, kit.processor.tokenizer)
    with pytest.raises(InvalidInputError, match="has no `image_processor`"):
        only_words(prompt, answer, [image])
    with pytest.raises(InvalidInputError, match="between 1 and 255"):
        explainer(prompt, answer, [image], cells=0)


def generated_by(model: Any, **inputs: Any) -> Any:
    return model.generate(
        **inputs,
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )


def test_position_ids_count_on() -> None:
    tokenizer = llava().processor.tokenizer
    model, ids = gpt2(0), torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": ids, "position_ids": torch.tensor([[3, 4, 5, 6]])}
    generated = generated_by(model, **inputs)
    # The logits are compared with those that `generate` had.
    if hasattr(model, "_prepare_position_ids_for_generation"):
        answer = ChatExplainer(model, tokenizer)(inputs, generated)
        assert answer.of_prompt.shape == (3, 4)
    else:  # old versions of Transformers repeat the last position
        with pytest.raises(InvalidInputError, match="not those that `generate` had"):
            ChatExplainer(model, tokenizer)(inputs, generated)
    for given in (generated, dict(generated)):
        with pytest.raises(InvalidInputError, match="not those that `generate` had"):
            ChatExplainer(gpt2(1), tokenizer)(inputs, given)


def test_masks_for_each_token_are_continued_and_other_inputs_are_left() -> None:
    prompt = torch.Size((1, 3))
    mask = torch.arange(6).view(1, 3, 2, 1)
    longer = continued("cross_attention_mask", mask, prompt, 2)
    assert longer.flatten().tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 4, 5]
    sizes = torch.tensor([[4, 5, 6]])
    assert continued("image_sizes", sizes, prompt, 2) is sizes


@pytest.mark.parametrize("frames_first", [False, True])
def test_spectrograms_have_the_frequencies_of_the_feature_extractor(frames_first: bool) -> None:
    kit = qwen2_audio()
    features = torch.rand(2, 8, 100)
    relevance = torch.rand(4, 2, 8, 100)
    if frames_first:
        features, relevance = features.mT, relevance.mT
    explainer = ChatExplainer(kit.model, kit.processor)
    found = explainer._spectrograms({"input_features": relevance}, {"input_features": features})
    assert [each.shape for each in found.spectrograms] == [(8, 100)] * 2
    assert [each.shape for each in found.relevance] == [(4, 8, 100)] * 2
    kit.processor.feature_extractor.feature_size = 9
    none = explainer._spectrograms({"input_features": relevance}, {"input_features": features})
    assert none.spectrograms == none.relevance == []
