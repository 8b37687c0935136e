"""Answers of models that see and hear, explained from what their processors made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image, to_tensor
from transformers import GPT2Config, GPT2LMHeadModel

from captum_transformer import AttnLRP, GenericAttentionRelevance
from captum_transformer.attr.beside import continued
from captum_transformer.chat import ChatExplainer, ExplainedAnswer
from captum_transformer.errors import InvalidInputError
from captum_transformer.visualization.places import places_of
from tests.chat.kits import (
    QUESTION,
    SEEING,
    Kit,
    intern_vl,
    llava,
    picture,
    qwen2_5_vl,
    qwen2_audio,
    qwen3_vl,
    sound,
)

SIZES = [[(48, 24)], [(40, 60), (64, 64), (33, 21)]]


def processed(kit: Kit) -> Callable[[list[Any]], torch.Tensor]:
    return lambda pictures: kit.processor.image_processor(images=pictures, return_tensors="pt")[
        "pixel_values"
    ]


@pytest.mark.parametrize("sizes", SIZES, ids=["one", "three"])
@pytest.mark.parametrize("make", SEEING)
def test_what_a_processor_made_of_a_square_is_found_where_the_square_is(
    make: Callable[[], Kit], sizes: list[tuple[int, int]]
) -> None:
    process = processed(make())
    black = [Image.new("RGB", size) for size in sizes]
    places = places_of(process, [picture(*size) for size in sizes])
    for number, (width, height) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[height // 2 : 3 * height // 4, width // 4 : width // 2] = 255
        shown = [*black[:number], Image.fromarray(pixels), *black[number + 1 :]]
        change = (process(shown) - process(black)).abs()

        maps = places.maps(change, [(8, 8)] * len(sizes))

        total = sum(float(each.sum()) for each in maps)
        assert total == pytest.approx(float(change.sum()), rel=1e-4)
        # Interpolation takes some of it beyond the edges.
        assert float(maps[number][4:6, 2:4].sum()) > 0.85 * total


def test_what_is_cropped_away_and_what_is_padding_has_no_place() -> None:
    def process(pictures: list[Any]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([np.array(each) for each in pictures])).float()
        cropped = pixels.permute(0, 3, 1, 2)[..., 2:] / 255
        return torch.nn.functional.pad((cropped - 0.5) / 0.2, (0, 3))

    places = places_of(process, [picture(8, 4), picture(8, 4, 1)])

    assert (places.picture[..., 6:] == -1).all()
    assert (places.picture[1, ..., :6] == 1).all()
    first, second = places.maps(torch.ones(5, 2, 3, 4, 9), [(4, 8), (1, 1)])
    assert first.shape == (5, 4, 8)
    assert (first[..., :2] == 0).all()
    assert (first[..., 2:] == 3).all()
    assert (second == 6 * 4 * 3).all()
    assert places.resolution(0) == (4, 8)


STEPS: dict[str, Callable[[Any], Any]] = {
    "a random crop": transforms.RandomResizedCrop(32),
    "a random flip": transforms.RandomHorizontalFlip(),
    "linear light": lambda pixels: pixels**2.2,
    "limits": lambda pixels: pixels.clamp(0.2, 0.8),
    "its own range": lambda pixels: (pixels - pixels.min()) / (pixels.max() - pixels.min() + 1e-9),
    "its own deviation": lambda pixels: (pixels - pixels.mean()) / (pixels.std() + 1e-9),
    "another shape": lambda pixels: pixels[:, : 1 + int(pixels.max() * 20)],
    "other colours": lambda pixels: to_tensor(to_pil_image(pixels).convert("HSV")),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_processor_whose_values_are_not_those_of_their_places_is_refused(
    step: Callable[[Any], Any],
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="unknown from which places in the picture"):
        places_of(
            lambda pictures: torch.cat([step(to_tensor(each)).flatten() for each in pictures]),
            [picture(60, 40), picture(60, 40, 1)],
        )


@pytest.mark.parametrize("how", list(transforms.InterpolationMode)[:3])
def test_the_resolution_is_that_of_the_input(how: Any) -> None:
    resize = transforms.Resize((30, 20), how)
    places = places_of(
        lambda pictures: torch.stack([to_tensor(resize(each)) for each in pictures]),
        [picture(60, 40)],
    )
    assert places.resolution(0) == pytest.approx((30, 20), rel=0.1)
    # Each cell has something.
    [found] = places.maps(torch.ones(1, 3, 30, 20), [places.resolution(0)])
    assert (found > 0).all()


def test_more_pictures_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 100 pictures at a time, got 101"):
        places_of(lambda pictures: torch.zeros(len(pictures)), [picture(4, 4)] * 101)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("make", SEEING)
def test_the_answer_is_explained_by_the_scores_that_it_was_chosen_by(
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
    # Everything that the method says is in the words, and in the pictures.
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


def test_it_is_what_the_method_says_of_the_model() -> None:
    kit = qwen3_vl()
    prompt = kit.prompt([picture(48, 32)])
    generated = kit.generate(prompt)
    grown = torch.nn.functional.pad

    def forward(input_ids: Any, pixel_values: Any, **named: Any) -> Any:
        return kit.model(input_ids=input_ids, pixel_values=pixel_values.flatten(0, 1), **named)

    # Which tokens are of images is told by the processor of new versions of Transformers.
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


def explained() -> ExplainedAnswer:
    of_image = torch.zeros(2, 4, 6)
    of_image[0, 1, 4] = 1.0
    of_image[1, 3, 0] = -2.0
    return ExplainedAnswer(
        ["a", "cat"],
        ["a", "cat"],
        ["what", "?"],
        torch.tensor([[1.0, 0.0], [0.0, 3.0]]),
        torch.tensor([[0.0, 0.0], [0.5, 0.0]]),
        [of_image],
        [],
        [],
        {},
        [Image.new("RGB", (30, 20), (128, 128, 128))],
        [],
        [],
        torch.eye(2),
    )


def test_the_picture_shows_the_place_in_the_picture_that_was_given() -> None:
    for word, row, column, channel in ((0, 1, 4, 0), ("cat", 3, 0, 2), (-1, 3, 0, 2)):
        shown = explained().picture(word, height=80, sign="signed").astype(int)
        # A margin of 10 and two lines of 19 above; cells of 20 pixels.
        cell = shown[48 + 20 * row + 10, 10 + 20 * column + 10]
        assert cell[channel] > cell.sum() - cell[channel]
        elsewhere = shown[48 + 20 * 2 + 10, 10 + 20 * 2 + 10]
        assert elsewhere.max() - elsewhere.min() < 3


def test_words_that_are_not_in_the_answer_or_several_times() -> None:
    answer = explained()
    with pytest.raises(InvalidInputError, match="'dog' is 0 times among what is explained"):
        answer.picture("dog")
    with pytest.raises(
        InvalidInputError, match="2 words or spans of the answer are explained, got number 2"
    ):
        answer.picture(2)
    assert answer.picture().shape == answer.picture(0).shape


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
    other = ChatExplainer(kit.model, kit.processor, process=lambda given: processed(kit)(given) * 2)
    with pytest.raises(InvalidInputError, match="`process=`"):
        other(prompt, generated, images)


def test_prompts_that_can_not_be_continued_are_refused() -> None:
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


@pytest.mark.parametrize("make", [llava, qwen3_vl])
def test_the_answers_own_words_and_hops_through_them(make: Callable[[], Kit]) -> None:
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


def test_a_video_is_found_where_it_was_shown() -> None:
    process = qwen2_5_vl().processor.video_processor
    black = [Image.new("RGB", (32, 16))] * 4
    white = np.zeros((16, 32, 3), np.uint8)
    white[8:12, 8:16] = 255

    def made(frames: list[Any]) -> torch.Tensor:
        found = process(videos=[frames], do_sample_frames=False, return_tensors="pt")
        return found["pixel_values_videos"]

    places = places_of(made, [picture(32, 16, seed) for seed in range(4)])
    change = (made([*black[:2], Image.fromarray(white), black[3]]) - made(black)).abs()
    maps = torch.stack(places.maps(change, [(4, 8)] * 4))
    assert float(maps[2, 2, 2:4].sum()) > 0.85 * float(change.sum())


def gpt2(seed: int) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=20, initializer_range=0.5, pad_token_id=0
    )
    return GPT2LMHeadModel(config).double().eval()


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


def test_masks_of_images_for_each_token_are_continued_and_what_is_not_known_is_left() -> None:
    prompt = torch.Size((1, 3))
    mask = torch.arange(6).view(1, 3, 2, 1)
    longer = continued("cross_attention_mask", mask, prompt, 2)
    assert longer.flatten().tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 4, 5]
    sizes = torch.tensor([[4, 5, 6]])
    assert continued("image_sizes", sizes, prompt, 2) is sizes


@pytest.mark.parametrize("frames_first", [False, True])
def test_frequencies_are_those_of_the_feature_extractor(frames_first: bool) -> None:
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


def test_a_picture_whose_camera_was_turned_keeps_its_places() -> None:
    turned = picture(6, 4)
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter
    turned.info["exif"] = exif.tobytes()

    def process(pictures: list[Any]) -> torch.Tensor:
        return torch.stack([to_tensor(ImageOps.exif_transpose(each)) for each in pictures])

    places = places_of(process, [turned])
    white = np.zeros((4, 6, 3), np.uint8)
    white[3, 0] = 255
    shown = Image.fromarray(white)
    shown.info["exif"] = turned.info["exif"]
    [found] = places.maps(process([shown]), [(4, 6)])
    assert found.shape == (4, 6)
    assert found[3, 0] == found.sum() == 3


def test_all_that_is_seen_is_explained() -> None:
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
