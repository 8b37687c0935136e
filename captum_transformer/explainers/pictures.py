"""Converts files, PIL images, arrays and tensors to pictures."""

import os
from typing import Any

import numpy as np
from torch import Tensor

from captum_transformer.errors import InvalidInputError


def picture_of(given: Any) -> Any:
    """Returns a picture as an RGB image of PIL, upright if it is read from a file.

    Args:
        given: a path, an image of PIL, or values of uint8: an array ``(H, W, 3)`` or ``(H, W)``, or
            a tensor ``(3, H, W)``, ``(1, H, W)`` or ``(H, W)``.

    Raises:
        InvalidInputError: if it is none of these, or the range of its values is unknown.
        OSError: if the file can't be read as an image.
    """
    from PIL import Image, ImageOps

    if isinstance(given, (str, os.PathLike)):
        with Image.open(given) as image:
            return in_rgb(ImageOps.exif_transpose(image))
    if isinstance(given, Image.Image):
        return in_rgb(given)
    array = given
    if isinstance(given, Tensor):
        array = (given.movedim(0, -1) if given.dim() == 3 else given).cpu().numpy()
    if isinstance(array, np.ndarray) and array.dtype == np.uint8:
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):
            return Image.fromarray(array).convert("RGB")
    shape = getattr(given, "shape", None)
    described = "" if shape is None else f" of {given.dtype} and shape {tuple(shape)}"
    raise InvalidInputError(
        "A picture must be a path, an image of PIL, an array (H, W, 3) or (H, W) or a tensor "
        f"(3, H, W) of uint8 values, got {type(given).__name__}{described}. To explain inputs "
        "that are already preprocessed, call a method directly."
    )


def in_rgb(image: Any) -> Any:
    """Converts an image to RGB: white behind transparent parts, 16 bits scaled to 8.

    Args:
        image: an image of PIL.

    Raises:
        InvalidInputError: if the range of its values is unknown.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InvalidInputError(
            f"The picture's values have no known range (mode {image.mode}): convert it to 8 bits."
        )
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        image = Image.new("RGBA", coloured.size, "white")
        image.alpha_composite(coloured)
    return image.convert("RGB")
