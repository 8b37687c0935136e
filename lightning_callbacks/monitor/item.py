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
        values: ``(C, H, W)`` of an image or where there is a layout, ``(N,)`` or ``(N, D)`` of a
            text or of features.
        layout: How it lay before it was arranged, if that was said.
        grid: The patches that maps of an image are summed by.
    """

    values: Tensor
    layout: Layout | None
    grid: Grid = None

    def is_image(self) -> bool:
        """Whether it is drawn as an image.

        Raises:
            ValueError: If it can't be told how to draw it, or no picture has room for it.
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
        """An image with one channel or three, and what its grey is."""
        channels = self.values.shape[0]
        if channels in (1, 3):
            return self.values, ""
        return self.values.float().mean(0, keepdim=True), f"grey: mean of {channels} channels"

    def height(self) -> int:
        """How high the picture is: frames stand beside each other, so they are smaller."""
        return _OF_FRAMES if self.layout is not None and "T" in self.layout.letters else _HEIGHT
