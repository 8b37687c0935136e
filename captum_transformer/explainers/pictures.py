"""Pictures that are given as files, as PIL images, as arrays or as tensors."""

import os
from typing import Any

import numpy as np
from torch import Tensor

from captum_transformer.errors import InvalidInputError


def picture_of(given: Any) -> Any:
    """A picture as an RGB image of PIL, upright if it comes from a file.

    Args:
        given: a path, an image of PIL, or values of uint8: an array ``(H, W, 3)`` or ``(H, W)``, or
            a tensor ``(3, H, W)``, ``(1, H, W)`` or ``(H, W)``.

    Raises:
        InvalidInputError: if it is none of these.
        OSError: if the file can't be read as an image.
    """
    from PIL import Image, ImageOps

    if isinstance(given, (str, os.PathLike)):
        with Image.open(given) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    if isinstance(given, Image.Image):
        return given.convert("RGB")
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
        f"(3, H, W) of uint8 values, got {type(given).__name__}{described}. What has been prepared "
        "for the model already is explained by the methods themselves."
    )
