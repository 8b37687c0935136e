"""Answers of models that see and hear are explained from the outputs of their processors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_transformer import AttnLRP, GenericAttentionRelevance
from captum_transformer.chat import ChatExplainer
from captum_transformer.errors import InvalidInputError
from tests.chat.kit import QUESTION, Kit, picture, sound
from tests.chat.kits import SEEING, gpt2, llava, qwen2_5_vl, qwen2_audio, qwen3_vl


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("make", SEEING)
def test_an_answer_is_explained_by_the_scores_that_it_was_chosen_by(
    make: Callable[[], Kit], count: int
) -> None:
    kit = make()
    images = [picture(48, 32), picture(30, 40, 1)][:count]
    prompt = kit.prompt(images)
    generated = kit.generate(prompt, return_dict_in_generate=True, output_logits=True)
    logits: list[torch.Tensor] = []

    def method(forward: Callable[..., Any]) -> Any:
        def noted(**inputs: Any) -> Any:
            output = forward(**inputs)
            logits.append(output.logits.detach())
            return output

        return AttnLRP(noted)

    answer = ChatExplainer(kit.model, kit.processor, method)(prompt, generated, images)

    length = prompt["input_ids"].shape[1]
    torch.testing.assert_close(
        logits[0][0, length - 1 : -1], torch.cat(generated.logits), rtol=1e-4, atol=1e-4
    )
    assert len(answer.words) == 4
    # The words and the pictures have all of the relevance.
    torch.testing.assert_close(
        answer.of_prompt.sum(1), answer.relevance["input_ids"].flatten(1).sum(1)
    )
    of_pixels = answer.relevance["pixel_values"].flatten(1)
    torch.testing.assert_close(
        torch.stack([each.flatten(1).sum(1) for each in answer.of_images]).sum(0),
        of_pixels.sum(1),
        rtol=1e-3,
        atol=1e-5 * float(of_pixels.abs().sum()),
    )
    assert all(each.abs().sum() > 0 for each in answer.of_images)
    ratios = [each.shape[-1] / each.shape[-2] for each in answer.of_images]
    assert ratios == pytest.approx([48 / 32, 30 / 40][:count], rel=0.1)


def test_the_explanation_is_the_one_of_the_method() -> None:
    kit = qwen3_vl()
    prompt = kit.prompt([picture(48, 32)])
    generated = kit.generate(prompt)
    grown = torch.nn.functional.pad

    def forward(input_ids: Any, pixel_values: Any, **named: Any) -> Any:
        return kit.model(input_ids=input_ids, pixel_values=pixel_values.flatten(0, 1), **named)

    # In new versions of Transformers the processor says which tokens are of images.
    kinds = {name: prompt[name] for name in ("mm_token_type_ids",) if name in prompt}
    by_hand = GenericAttentionRelevance(forward).attribute_generated(
        {"input_ids": prompt["input_ids"], "pixel_values": prompt["pixel_values"][None]},
        generated,
        generated_as="input_ids",
        rather_than=5,
        additional_forward_kwargs={
            "attention_mask": grown(prompt["attention_mask"], (0, 4), value=1),
            **{name: grown(each, (0, 4), value=0) for name, each in kinds.items()},
            "image_grid_thw": prompt["image_grid_thw"],
        },
    )
    explainer = ChatExplainer(kit.model, kit.processor, GenericAttentionRelevance)
    answer = explainer(prompt, generated, rather_than=5)

    for name in ("input_ids", "pixel_values"):
        torch.testing.assert_close(answer.relevance[name], by_hand[name][0])
    assert answer.of_images == []


def test_a_sound() -> None:
    kit = qwen2_audio()
    prompt = kit.prompt([sound(), sound(1)])
    answer = ChatExplainer(kit.model, kit.processor)(prompt, kit.generate(prompt))

    features = answer.relevance["input_features"]
    assert [tuple(each.shape) for each in answer.of_sounds] == [(4, 8, 100)] * 2
    torch.testing.assert_close(torch.stack(answer.of_sounds, 1), features)
    assert answer.prompt[:4] == ["user", "<|audio_bos|>", "<|AUDIO|> × 12", "<|audio_eos|>"]
    assert answer.picture(0).shape[2] == 3


def film(kit: Kit, frames: list[Any]) -> Any:
    text = f"user <|vision_start|> <|video_pad|> <|vision_end|> {QUESTION} assistant"
    return kit.processor(text=text, videos=[frames], do_sample_frames=False, return_tensors="pt")


def test_a_video() -> None:
    kit = qwen2_5_vl()
    frames = [picture(32, 16, seed) for seed in range(4)]
    prompt = film(kit, frames)
    generated = kit.generate(prompt)
    explain = ChatExplainer(kit.model, kit.processor)
    answer = explain(prompt, generated, videos=[frames])
    (of_video,) = answer.of_videos
    assert of_video.shape[:2] == (4, 4)
    assert of_video.shape[3] == 2 * of_video.shape[2]
    of_pixels = answer.relevance["pixel_values_videos"].flatten(1)
    torch.testing.assert_close(
        of_video.flatten(1).sum(1),
        of_pixels.sum(1),
        rtol=1e-3,
        atol=1e-5 * float(of_pixels.abs().sum()),
    )
    assert answer.picture(0).shape[0] > explain(prompt, generated).picture(0).shape[0]
    with pytest.raises(InvalidInputError, match="Give all videos of the conversation"):
        explain(prompt, generated, videos=[frames[::-1]])
    for wrong in (frames, [[*frames, picture(8, 8)]], "film.mp4"):
        with pytest.raises(InvalidInputError, match="must be a list with the frames of each"):
            explain(prompt, generated, videos=wrong)
    with pytest.raises(InvalidInputError, match="Give all images of the conversation"):
        explain(prompt, generated, frames)


def test_all_inputs_with_a_gradient_are_explained() -> None:
    class Hybrid(nn.Module):
        """Reads an image at two resolutions."""

        def __init__(self) -> None:
            super().__init__()
            self.language = gpt2(0)
            self.low, self.high = nn.Linear(3, 16).double(), nn.Linear(5, 16).double()

        def forward(self, input_ids: Any, pixel_values: Any, high: Any, **named: Any) -> Any:
            words = self.language.transformer.wte(input_ids)
            seen = self.low(pixel_values)[:, None] + self.high(high)[:, None]
            return self.language(inputs_embeds=words + seen, **named)

    inputs = {
        "input_ids": torch.tensor([[5, 6]]),
        "pixel_values": torch.rand(1, 3).double(),
        "high": torch.rand(1, 5).double(),
        "second_per_grid_ts": torch.tensor([0.5]),
    }
    model = Hybrid().eval()

    def forward(second_per_grid_ts: Any, **named: Any) -> Any:
        return model(**named)

    tokenizer = llava().processor.tokenizer
    answer = ChatExplainer(forward, tokenizer)(inputs, torch.tensor([[5, 6, 7, 8]]))
    assert set(answer.relevance) == {"input_ids", "pixel_values", "high"}
    assert answer.relevance["high"].abs().sum() > 0
