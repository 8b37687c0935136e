"""Maps on the images and videos of a conversation, as they were given to the processor."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_transformer.chat.answer import Seen
from captum_transformer.errors import InvalidInputError
from captum_transformer.visualization.places import Places, Process, places_of


class Kind(NamedTuple):
    """A kind of visual input.

    Attributes:
        plural: its plural in messages, and the processor's argument.
        name: the name of the model's input.
        attribute: the processor's attribute that creates this input.
        option: the argument with which a user replaces the processor.
    """

    plural: str
    name: str
    attribute: str
    option: str


IMAGES = Kind("images", "pixel_values", "image_processor", "process")
VIDEOS = Kind("videos", "pixel_values_videos", "video_processor", "process_videos")


class Pictures:
    """The images of a conversation, or the frames of its videos, and their places in the input.

    Args:
        kind: images or videos.
        given: the images, or the frames of each video.
        pixels: the model's input, or None if it has no such input.
        process: converts ``given`` to the model's input.
        cells: the number of cells along the longer side of a picture's map.

    Raises:
        InvalidInputError: if the model's input differs from that of these pictures.
    """

    def __init__(
        self,
        kind: Kind,
        given: Sequence[Any],
        pixels: Tensor | None,
        process: Callable[[list[Any]], Tensor],
        cells: int,
    ) -> None:
        self._kind, self._cells = kind, cells
        self._given: list[Any] = [list(each) for each in given] if kind is VIDEOS else list(given)
        self._places: Places | None = None
        if not self._given:
            return
        made = process(self._given)
        if pixels is None or made.shape != pixels.shape or not torch.equal(made.to(pixels), pixels):
            raise InvalidInputError(
                f"The processor makes `{kind.name}` of shape {tuple(made.shape)} of the "
                f"{len(given)} {kind.plural}, and the inputs have "
                f"{'none' if pixels is None else f'others, of shape {tuple(pixels.shape)}'}. Give "
                f"all {kind.plural} of the conversation in their order (if they were turned when "
                "they were loaded, by `PIL.ImageOps.exif_transpose`; of a video the frames that "
                "the model saw), and where the processor was called with options of its own, what "
                f"it does to {kind.plural} as `{kind.option}=`."
            )
        self._places = places_of(self._regrouped(process), self._flat)

    @property
    def _flat(self) -> list[Any]:
        return [f for v in self._given for f in v] if self._kind is VIDEOS else self._given

    def _regrouped(self, process: Callable[[list[Any]], Tensor]) -> Process:
        """Returns the function that preprocesses all pictures."""
        if self._kind is not VIDEOS:
            return process
        counts = [len(video) for video in self._given]

        def of_frames(frames: list[Any]) -> Tensor:
            rest = iter(frames)
            return process([[next(rest) for _ in range(count)] for count in counts])

        return of_frames

    def seen(self, relevance: Tensor | None) -> Seen:
        """Returns the pictures with their maps, with one tensor for all frames of a video."""
        if self._places is None or relevance is None:
            return Seen([], [])
        sizes = [self._size(number, each) for number, each in enumerate(self._flat)]
        if self._kind is not VIDEOS:
            return Seen([each.convert("RGB") for each in self._given], self._maps(relevance, sizes))
        first = [sum(map(len, self._given[:number])) for number in range(len(self._given))]
        together = [sizes[i] for i, v in zip(first, self._given, strict=True) for _ in v]
        maps = iter(self._maps(relevance, together))
        return Seen(
            [[frame.convert("RGB") for frame in video] for video in self._given],
            [torch.stack([next(maps) for _ in video], 1) for video in self._given],
        )

    def _maps(self, relevance: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        return [] if self._places is None else self._places.maps(relevance, sizes)

    def _size(self, number: int, picture: Any) -> tuple[int, int]:
        """Returns the height and width of a picture's map."""
        rows, columns = (1, 1) if self._places is None else self._places.resolution(number)
        side = max(max(picture.size) / self._cells, picture.height / rows, picture.width / columns)
        return max(1, round(picture.height / side)), max(1, round(picture.width / side))


def refuse_other_pictures(images: Any, videos: Any) -> None:
    """Raises an error unless images are a list of PIL images, and videos a list of such lists."""
    if not _are_pictures(images):
        raise InvalidInputError(
            f"`images` must be a list of PIL images, got {type(images).__name__}: "
            "`[PIL.Image.open(path)]`."
        )
    if not isinstance(videos, (list, tuple)) or not all(map(_is_video, videos)):
        raise InvalidInputError(
            "`videos` must be a list with the frames of each video, PIL images of one size that "
            f"the model saw: `[[frame, frame, ...]]`; got {type(videos).__name__}."
        )


def _are_pictures(given: Any) -> bool:
    return isinstance(given, (list, tuple)) and all(hasattr(each, "convert") for each in given)


def _is_video(given: Any) -> bool:
    return _are_pictures(given) and len({frame.size for frame in given}) == 1
