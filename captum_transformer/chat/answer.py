"""An explained answer: numbers for words, images and sounds, and its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.chat.words import Words
from captum_transformer.errors import InvalidInputError
from captum_transformer.visualization.canvas import Canvas, Image
from captum_transformer.visualization.figure import to_array
from captum_transformer.visualization.image_and_text import image_and_text
from captum_transformer.visualization.maps import MapOptions
from captum_transformer.visualization.panel import format_value
from captum_transformer.visualization.spectrogram import spectrogram
from captum_transformer.visualization.token_strip import token_strip


class Heard(NamedTuple):
    """The sounds of a conversation.

    Attributes:
        spectrograms: each ``(bins, frames)``.
        relevance: of each for the answer's tokens, ``(tokens, bins, frames)``.
    """

    spectrograms: list[Tensor]
    relevance: list[Tensor]


@dataclass(frozen=True)
class ExplainedAnswer:
    """What the words of an answer are due to.

    Attributes:
        words: those of the answer, W of them.
        prompt: those of the prompt, P of them; a run of an image's or a sound's placeholders is
            one. What an image has is in `of_images`: a placeholder's own relevance is nearly none.
        of_prompt: the relevance of each word of the prompt to each of the answer, ``(W, P)``.
        of_answer: that of each earlier word of the answer, ``(W, W)``.
        of_images: for each image a map on the picture that was given, ``(W, height, width)``.
        of_sounds: for each sound a map on its spectrogram, ``(W, bins, frames)``, if the feature
            extractor says how many bins there are.
        relevance: what the method gave for each token of the answer, by the input's name.
    """

    words: list[str]
    prompt: list[str]
    of_prompt: Tensor
    of_answer: Tensor
    of_images: list[Tensor]
    of_sounds: list[Tensor]
    relevance: dict[str, Tensor]
    _images: list[Any]
    _sounds: list[Tensor]

    def picture(
        self, word: str | int | None = None, *, height: int = 256, **options: Unpack[MapOptions]
    ) -> Image:
        """Draws what a word of the answer is due to: images and sounds, and the prompt beside them.

        Args:
            word: one of `words`, if it is there once, or its number; None for the whole answer.
            height: the height in pixels that images are shown with.
            **options: what of the maps is shown, see
                :class:`~captum_transformer.visualization.MapOptions`.

        Returns:
            A uint8 array ``(height, width, 3)``.

        Raises:
            InvalidInputError: if there is no such word, or several.
        """
        rows = slice(None) if word is None else self._number(word)

        def chosen(relevance: Tensor) -> Tensor:
            return relevance[rows].reshape(-1, *relevance.shape[1:]).sum(0).cpu()

        text, maps = chosen(self.of_prompt), [chosen(each) for each in self.of_images]
        sounds = [chosen(each) for each in self.of_sounds]
        caption = self._caption(word, text, maps, sounds, chosen(self.of_answer))
        if maps:
            shown = [
                _drawn(image, cells.shape, height)
                for image, cells in zip(self._images, maps, strict=True)
            ]
            above = image_and_text(
                shown, maps, self.prompt, text, caption, height=height, **options
            )
        else:
            above = token_strip(self.prompt, text, caption, sign=options.get("sign", "auto"))
        heard = zip(self._sounds, sounds, strict=True)
        return _stacked([above, *(to_array(spectrogram(s, of, **options)) for s, of in heard)])

    def _number(self, word: str | int) -> int:
        if isinstance(word, int):
            if word not in range(-len(self.words), len(self.words)):
                raise InvalidInputError(f"The answer has {len(self.words)} words, got {word}.")
            return word
        found = [number for number, each in enumerate(self.words) if each == word]
        if len(found) != 1:
            raise InvalidInputError(
                f"{word!r} is {len(found)} times among the answer's words, {self.words}. "
                "Give the number of the one that is meant."
            )
        return found[0]

    def _caption(
        self,
        word: str | int | None,
        text: Tensor,
        maps: list[Tensor],
        sounds: list[Tensor],
        before: Tensor,
    ) -> str:
        chosen = None if word is None else self._number(word) % len(self.words)
        answer = " ".join(
            f"[{each}]" if number == chosen else each for number, each in enumerate(self.words)
        )
        parts = [("prompt", text)]
        for name, found in (("image", maps), ("sound", sounds)):
            parts += [
                (f"{name} {number}" if len(found) > 1 else name, each)
                for number, each in enumerate(found, 1)
            ]
        parts.append(("words before", before))
        shares = ", ".join(f"{name} {format_value(float(each.sum()))}" for name, each in parts)
        return f"{answer}\nrelevance: {shares}"


def of_words(
    relevance: Mapping[str, Tensor],
    words: Words,
    prompt: Words,
    *,
    of_answer: Tensor,
    images: Sequence[Any],
    maps: Sequence[Tensor],
    heard: Heard,
) -> ExplainedAnswer:
    """Adds up what tokens have to what words have."""
    return ExplainedAnswer(
        words.labels,
        prompt.labels,
        prompt.summed(words.summed(relevance["input_ids"], 0), 1),
        words.summed(words.summed(of_answer, 0), 1),
        [words.summed(each, 0) for each in maps],
        [words.summed(each, 0) for each in heard.relevance],
        dict(relevance),
        list(images),
        heard.spectrograms,
    )


def _drawn(image: Any, cells: torch.Size, height: int) -> Tensor:
    """An image in whole cells, about as high as it is asked for."""
    scale = max(1, round(height / cells[0]))
    resized = image.resize((cells[1] * scale, cells[0] * scale))
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _stacked(pictures: Sequence[Image]) -> Image:
    """Pictures below each other, on white."""
    canvas = Canvas(max(p.shape[1] for p in pictures), sum(p.shape[0] for p in pictures))
    top = 0
    for picture in pictures:
        canvas.paste(picture, 0, top)
        top += picture.shape[0]
    return canvas.image()
