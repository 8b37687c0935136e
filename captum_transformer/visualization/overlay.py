"""A heatmap over the image that was explained."""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.canvas import Image
from captum_transformer.visualization.colors import overlay_colors
from captum_transformer.visualization.maps import MapOptions, ScaledMap, scaled_map

# The opacity of the strongest value, and the brightness of the image where there is no relevance.
_OPACITY = 0.85
_DIM = 0.75
_LUMA = np.array([0.299, 0.587, 0.114])


Picture: TypeAlias = Tensor | Image | Any
"""A picture as a tensor, as a NumPy array with the channels last, or as an image of PIL."""


def to_display(image: Picture) -> Image:
    """Converts an image to a form that can be drawn.

    Args:
        image: A tensor ``(3, H, W)``, ``(1, H, W)`` or ``(H, W)``, an array ``(H, W, 3)``,
            ``(H, W, 1)`` or ``(H, W)``, or an image of PIL. A float image may have any range, as
            the inputs of a model do after normalisation: its smallest value becomes black and its
            largest white. A uint8 image stays as it is.

    Returns:
        A uint8 array ``(H, W, 3)``.

    Raises:
        ValueError: If the shape is not one of these, or a value is not finite.

    Example:
        >>> import torch
        >>> to_display(torch.tensor([[[-2.0, 0.0, 2.0]]]))[0, :, 0]
        array([  0, 128, 255], dtype=uint8)
    """
    image = _as_tensor(image)
    pixels = image[None] if image.dim() == 2 else image
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            "An image must have the shape (3, H, W), (1, H, W) or (H, W), got "
            f"{tuple(image.shape)}. Choose the channels to show, e.g. image[:3]."
        )
    pixels = pixels.detach()
    if pixels.dtype != torch.uint8:
        pixels = pixels.float()
        low, high = torch.aminmax(pixels)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ValueError("The image has NaN or infinite values, so it can't be shown.")
        # An image of one colour has no range, and is shown as medium grey.
        pixels = (pixels - low) / (high - low) if high > low else torch.full_like(pixels, 0.5)
        pixels = (pixels * 255).round().to(torch.uint8)
    array: Image = pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    return array


def _as_tensor(image: Picture) -> Tensor:
    if hasattr(image, "convert"):
        image = np.array(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        tensor: Tensor = image
        return tensor
    # Some arrays, such as flipped ones, have strides that tensors can't have.
    tensor = torch.from_numpy(np.ascontiguousarray(image))
    return tensor.permute(2, 0, 1) if tensor.dim() == 3 else tensor


def overlay(image: Picture, attribution: Tensor, **options: Unpack[MapOptions]) -> Image:
    """Lays a heatmap over an image.

    The stronger the attribution, the more its colour covers the image; everything irrelevant stays
    recognisable in a dimmed grey.

    Args:
        image: A tensor, an array or an image of PIL, in any range; see `to_display`.
        attribution: ``(C, H, W)`` or ``(H, W)`` of any height and width; it covers the whole image.
            A coarser map, such as one value per patch, is enlarged.
        **options: How the attribution is drawn, see `MapOptions`.

    Returns:
        A uint8 array ``(H, W, 3)``.

    Raises:
        ValueError: If a shape doesn't fit, an option is invalid or a value is not finite.

    Example:
        >>> import torch
        >>> image, attribution = torch.rand(3, 32, 48), torch.randn(3, 32, 48)
        >>> overlay(image, attribution).shape
        (32, 48, 3)
    """
    pixels = to_display(image)
    return blend(pixels, scaled_map(attribution, pixels.shape[:2], **options))


def blend(image: Image, scaled: ScaledMap) -> Image:
    """Covers an image with the colours of a map, each as opaque as it is strong.

    Args:
        image: A uint8 array ``(H, W, 3)``.
        scaled: A map of the same height and width.

    Returns:
        A uint8 array ``(H, W, 3)``.
    """
    strength = scaled.values.abs().cpu().numpy()[..., None]
    # An exponent below one makes weak relevance visible.
    opacity = _OPACITY * strength**0.75
    grey = image.astype(np.float64) @ _LUMA * _DIM + 255 * (1 - _DIM) / 2
    mixed: Image = (
        ((1 - opacity) * grey[..., None] + opacity * 255 * overlay_colors(scaled))
        .round()
        .astype(np.uint8)
    )
    return mixed
