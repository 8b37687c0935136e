"""An explained answer: the relevance of words, images and sounds, and pictures of it."""

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
from captum_transformer.visualization.video_frames import video_frames

_FRAME = 96  # pixels


class Heard(NamedTuple):
    """The sounds of a conversation.

    Attributes:
        spectrograms: each ``(bins, frames)``.
        relevance: the relevance of each for the answer's tokens, ``(tokens, bins, frames)``.
    """

    spectrograms: list[Tensor]
    relevance: list[Tensor]


@dataclass(frozen=True)
class ExplainedAnswer:
    """The relevance of the conversation for the words of an answer, or for spans of words.

    Attributes:
        words: the W words of the answer.
        explained: the R explained parts of the answer: its words, or the spans that were asked
            about.
        prompt: the P words of the prompt; the placeholders of an image or a sound are one word.
            The relevance of an image is in `of_images`: that of its placeholders is almost zero.
        of_prompt: the relevance of each word of the prompt to each of these parts, ``(R, P)``.
        of_answer: the relevance of each word of the answer, ``(R, W)``.
        of_images: for each image a map on the original picture, ``(R, height, width)``.
        of_videos: for each video a map on its frames, ``(R, frames, height, width)``.
        of_sounds: for each sound a map on its spectrogram, ``(R, bins, frames)``, if the feature
            extractor defines the number of bins.
        relevance: the method's result for each token of the answer, or each span, by the input's
            name.
    """

    words: list[str]
    explained: list[str]
    prompt: list[str]
    of_prompt: Tensor
    of_answer: Tensor
    of_images: list[Tensor]
    of_videos: list[Tensor]
    of_sounds: list[Tensor]
    relevance: dict[str, Tensor]
    _images: list[Any]
    _videos: list[list[Any]]
    _sounds: list[Tensor]
    _weights: Tensor

    def picture(
        self, word: str | int | None = None, *, height: int = 256, **options: Unpack[MapOptions]
    ) -> Image:
        """Draws the relevance of images, videos and sounds for a word or span, next to the prompt.

        Args:
            word: one of `explained`, if it occurs once, or its number; None for all together.
            height: the height of the drawn images in pixels.
            **options: how maps are drawn, see
                :class:`~captum_transformer.visualization.MapOptions`.

        Returns:
            A uint8 array ``(height, width, 3)``.

        Raises:
            InvalidInputError: if there is no such word or span, or several.
        """
        rows = slice(None) if word is None else self._number(word)

        def chosen(relevance: Tensor) -> Tensor:
            return relevance[rows].reshape(-1, *relevance.shape[1:]).sum(0).cpu()

        text, maps = chosen(self.of_prompt), [chosen(each) for each in self.of_images]
        videos = [chosen(each) for each in self.of_videos]
        sounds = [chosen(each) for each in self.of_sounds]
        caption = self._caption(word, text, maps, videos, sounds, chosen(self.of_answer))
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
        drawn = [
            video_frames(
                torch.stack([_drawn(f, of.shape[1:], _FRAME) for f in frames]), of, **options
            )
            for frames, of in zip(self._videos, videos, strict=True)
        ]
        heard = zip(self._sounds, sounds, strict=True)
        drawn += [spectrogram(sound, of, **options) for sound, of in heard]
        return _stacked([above, *map(to_array, drawn)])

    def _number(self, word: str | int) -> int:
        if isinstance(word, int):
            count = len(self.explained)
            if word not in range(-count, count):
                raise InvalidInputError(
                    f"{count} words or spans of the answer are explained, got number {word}."
                )
            return word
        found = [number for number, each in enumerate(self.explained) if each == word]
        if len(found) != 1:
            raise InvalidInputError(
                f"{word!r} is {len(found)} times among what is explained, {self.explained}. "
                "Give the number of the one that is meant."
            )
        return found[0]

    def _caption(
        self,
        word: str | int | None,
        text: Tensor,
        maps: list[Tensor],
        videos: list[Tensor],
        sounds: list[Tensor],
        before: Tensor,
    ) -> str:
        marked = [False] * len(self.words)
        if word is not None:
            marked = (self._weights[self._number(word)] != 0).tolist()
        pairs = zip(self.words, marked, strict=True)
        answer = " ".join(f"[{each}]" if chosen else each for each, chosen in pairs)
        parts = [("prompt", text)]
        for name, found in (("image", maps), ("video", videos), ("sound", sounds)):
            parts += [
                (f"{name} {number}" if len(found) > 1 else name, each)
                for number, each in enumerate(found, 1)
            ]
        parts.append(("words before", before))
        shares = ", ".join(f"{name} {format_value(float(each.sum()))}" for name, each in parts)
        return f"{answer}\nrelevance: {shares}"


class Seen(NamedTuple):
    """The images of a conversation, or the frames of its videos.

    Attributes:
        pictures: the original pictures.
        relevance: a map on each for each token or span, ``(rows, ..., height, width)``.
    """

    pictures: list[Any]
    relevance: list[Tensor]


def of_words(
    relevance: Mapping[str, Tensor],
    words: Words,
    prompt: Words,
    *,
    weights: Tensor | None,
    of_answer: Tensor,
    images: Seen,
    videos: Seen,
    heard: Heard,
) -> ExplainedAnswer:
    """Sums the relevance of tokens by word.

    Args:
        relevance: the method's result.
        words: the words of the answer.
        prompt: the words of the prompt.
        weights: the weight of each word in the explained spans; None if each token is explained.
        of_answer: the relevance of the answer's own tokens.
        images: the images.
        videos: the videos.
        heard: the sounds.
    """
    count = len(words.labels)
    of_each = torch.eye(count) if weights is None else weights

    def rows(each: Tensor) -> Tensor:
        return words.summed(each, 0) if weights is None else each

    return ExplainedAnswer(
        words.labels,
        [" ".join(words.labels[i] for i in row.nonzero().flatten().tolist()) for row in of_each],
        prompt.labels,
        prompt.summed(rows(relevance["input_ids"]), 1),
        words.summed(rows(of_answer), 1),
        [rows(each) for each in images.relevance],
        [rows(each) for each in videos.relevance],
        [rows(each) for each in heard.relevance],
        dict(relevance),
        images.pictures,
        videos.pictures,
        heard.spectrograms,
        of_each,
    )


def _drawn(image: Any, cells: Sequence[int], height: int) -> Tensor:
    """Scales an image by a whole number, to about the given height."""
    scale = max(1, round(height / cells[0]))
    resized = image.resize((cells[1] * scale, cells[0] * scale))
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _stacked(pictures: Sequence[Image]) -> Image:
    """Stacks pictures vertically, on white."""
    canvas = Canvas(max(p.shape[1] for p in pictures), sum(p.shape[0] for p in pictures))
    top = 0
    for picture in pictures:
        canvas.paste(picture, 0, top)
        top += picture.shape[0]
    return canvas.image()
