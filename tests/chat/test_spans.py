"""Words, phrases and weighted words of an answer are explained, also through earlier words."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from captum_transformer import GenericAttentionRelevance
from captum_transformer.chat import ChatExplainer, ExplainedAnswer
from captum_transformer.errors import InvalidInputError
from tests.chat.kit import Kit, picture
from tests.chat.kits import gpt2, llava, qwen3_vl


@pytest.mark.parametrize("make", [llava, qwen3_vl])
def test_earlier_words_of_the_answer_and_hops_through_them(make: Callable[[], Kit]) -> None:
    kit = make()
    images = [picture(48, 32)]
    prompt = kit.prompt(images)
    generated = kit.generate(prompt)
    explain = ChatExplainer(kit.model, kit.processor, GenericAttentionRelevance)

    def total(answer: ExplainedAnswer) -> torch.Tensor:
        seen = answer.of_images[0].flatten(1).sum(1)
        return answer.of_prompt.sum(1) + answer.of_answer.sum(1) + seen

    direct = explain(prompt, generated, images)
    assert direct.of_answer.shape == (4, 4)
    assert direct.of_answer.triu().abs().max() == 0  # no word is due to itself or later ones
    assert direct.of_answer[1:].sum(1).min() > 0
    hopped = explain(prompt, generated, images, hops=None)
    torch.testing.assert_close(total(hopped), total(direct))
    assert hopped.of_answer.abs().max() <= 1e-6 * direct.of_answer.max()
    assert (hopped.of_images[0][1:].sum((1, 2)) > direct.of_images[0][1:].sum((1, 2))).all()


@pytest.mark.parametrize("hops", [0, None])
def test_several_words_together(hops: int | None) -> None:
    kit = llava()
    images = [picture(48, 32)]
    prompt = kit.prompt(images)
    generated = kit.generate(prompt)
    explain = ChatExplainer(kit.model, kit.processor, GenericAttentionRelevance)
    words = explain(prompt, generated, images).words
    weights = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    spans: list[Any] = [(1, 3), slice(3, 4)]
    answer = explain(prompt, generated, images, spans=spans, hops=hops)
    assert answer.words == words
    assert answer.explained == [" ".join(words[1:3]), words[3]]
    assert answer.of_prompt.shape == (2, len(answer.prompt))
    assert answer.of_answer.shape == (2, 4)
    assert answer.of_images[0].shape[0] == 2
    assert answer.picture(answer.explained[0]).shape == answer.picture(1).shape
    by_weights = explain(prompt, generated, images, spans=weights, hops=hops)
    torch.testing.assert_close(answer.of_prompt, by_weights.of_prompt)


def test_a_phrase_of_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = llava().processor.tokenizer
    model, ids = gpt2(0), torch.tensor([[5, 6, 7, 8]])
    said = torch.tensor([[5, 6, 7, 8, 9, 10, 9]])
    explain = ChatExplainer(model, tokenizer)
    words = explain({"input_ids": ids}, said, show_progress=True).words
    assert " 3/3 " in capsys.readouterr().err
    found = explain({"input_ids": ids}, said, spans=[" ".join(words[1:])])
    assert found.explained == [" ".join(words[1:])]
    torch.testing.assert_close(
        found.of_prompt, explain({"input_ids": ids}, said, spans=[(1, 3)]).of_prompt
    )
    for phrase, times in ((words[0], 2), ("elephant", 0)):
        with pytest.raises(InvalidInputError, match=f"is {times} times among the answer's words"):
            explain({"input_ids": ids}, said, spans=[phrase])
    with pytest.raises(InvalidInputError, match="not within the 3 words of the answer"):
        explain({"input_ids": ids}, said, spans=[(1, 4)])
    with pytest.raises(InvalidInputError, match="got a str"):
        explain({"input_ids": ids}, said, spans=words[0])
