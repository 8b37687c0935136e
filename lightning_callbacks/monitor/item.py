"""The part of an input that is drawn."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_callbacks.explanations.patches import Grid
from lightning_callbacks.samples.layout import Layout

_HEIGHT, _OF_FRAMES = 256, 112
_WIDEST = 8192
_LONGEST = 4096


class Item(NamedTuple):
    """An input of one sample.

    Attributes:
        values: ``(C, H, W)`` for an image or an input with a layout, ``(N,)`` or ``(N, D)`` for a
            text or for features.
        layout: The layout of the input before it was arranged as an image, or None if not given.
        grid: The patches that maps of an image are summed by.
    """

    values: Tensor
    layout: Layout | None
    grid: Grid = None

    def is_image(self) -> bool:
        """Returns whether the input is drawn as an image.

        Raises:
            ValueError: If the order of its dimensions is unknown, or it is too wide for a picture.
        """
        values, shape = self.values, tuple(self.values.shape)
        if self.layout is not None:
            if shape[2] * self.height() > _WIDEST * shape[1]:
                raise ValueError(
                    f"{shape[1]} x {shape[2]} values are too wide for a picture. Numbers are "
                    "still logged."
                )
            return True
        if values.dim() > 3 or (values.dim() == 3 and shape[0] not in (1, 3)):
            raise ValueError(
                f"An input of the shape {shape} can't be drawn, because the order of its "
                'channels, rows and columns is unknown. Pass it: layout="CHW" for an image of '
                f'{shape[0]} channels, "HWC" for channels last, "TCHW" or "CTHW" for a video or '
                "the slices of a volume."
            )
        if values.is_floating_point() and values.dim() < 3 and len(values) > _LONGEST:
            raise ValueError(
                f"{len(values)} features are too many for a picture. Numbers are still "
                'logged. For a spectrogram pass layout="HW".'
            )
        return values.dim() == 3

    def picture(self) -> tuple[Tensor, str]:
        """Returns an image with one or three channels, and a note on what a grey image shows."""
        channels = self.values.shape[0]
        if channels in (1, 3):
            return self.values, ""
        return self.values.float().mean(0, keepdim=True), f"grey: mean of {channels} channels"

    def height(self) -> int:
        """Returns the height of the picture, which is less for frames, drawn side by side."""
        return _OF_FRAMES if self.layout is not None and "T" in self.layout.letters else _HEIGHT
