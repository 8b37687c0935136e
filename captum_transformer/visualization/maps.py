"""Converts the attribution of one sample to a map that can be coloured."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.patches import by_patch

Sign: TypeAlias = Literal["auto", "signed", "positive", "absolute"]
"""Which part of an attribution is shown: all of it, what supports the class, or the size only.
``"auto"`` is ``"signed"`` for an attribution with negative values and ``"positive"`` otherwise."""

Channels: TypeAlias = Literal["sum", "mean"]
"""How the channels of a pixel become one value."""


class MapOptions(TypedDict, total=False):
    """How an image's attribution is drawn as a map; all functions for pictures take these options.

    Attributes:
        channels: ``"sum"`` (default) or ``"mean"`` over the channels, see `to_map`.
        sign: ``"auto"`` (default), ``"signed"``, ``"positive"`` or ``"absolute"``, see `Sign`.
        scale: The attribution with the strongest colour. None (default): each map has its own.
        quantile: The quantile that is the scale, if each map has its own, see `scale_map`.
        smooth: Interpolate between patches (default: False), see `smooth_patches`.
        grid: The numbers of rows and columns of patches; each pixel shows the sum of its patch.
            None (default): each pixel shows its own value.
    """

    channels: Channels
    sign: Sign
    scale: float | None
    quantile: float
    smooth: bool
    grid: tuple[int, int] | None


class ScaledMap(NamedTuple):
    """A map in units of its colour scale.

    Attributes:
        values: Float32 values, in [-1, 1] if `signed` and in [0, 1] otherwise.
        scale: The attribution that has the strongest colour; 0 for a map of zeros.
        signed: Whether negative values have a separate colour.
    """

    values: Tensor
    scale: float
    signed: bool


def scaled_map(
    attribution: Tensor, size: tuple[int, ...], **options: Unpack[MapOptions]
) -> ScaledMap:
    """Turns the attribution of an image into the map that is drawn over it.

    Args:
        attribution: ``(C, H, W)`` or ``(H, W)``, or coarser or finer than the image; it is assumed
            to cover the whole image.
        size: The image's height and width.
        **options: See `MapOptions`.

    Returns:
        The map in the image's size.

    Raises:
        ValueError: If the attribution is not a map, or an option is invalid.
    """
    smooth = options.get("smooth", False)
    values = to_map(attribution, channels=options.get("channels", "sum"), grid=options.get("grid"))
    height, width = values.shape
    if (height, width) != (size[0], size[1]):
        values = resize(values, (size[0], size[1]), smooth=smooth)
    elif smooth:
        values = smooth_patches(values)
    return scale_map(
        values,
        sign=options.get("sign", "auto"),
        scale=options.get("scale"),
        quantile=options.get("quantile", 0.995),
    )


def to_map(
    attribution: Tensor,
    *,
    channels: Channels = "sum",
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Reduces the attribution of one image to one value per pixel.

    The sum is the contribution of the whole pixel, so the map keeps the attribution's total.

    Args:
        attribution: ``(C, H, W)``, or ``(H, W)`` where there are no channels to reduce.
        channels: ``"sum"`` or ``"mean"`` over the channels.
        grid: The numbers of rows and columns of patches; each pixel gets the sum of its patch.
            None: each pixel has its own value.

    Returns:
        A detached float32 map ``(H, W)`` on the attribution's device.

    Raises:
        ValueError: If the shape is not one of these, it can't be cut into these patches, or a
            value is not finite.

    Example:
        >>> import torch
        >>> to_map(torch.tensor([[[1.0, 2.0]], [[3.0, -2.0]]]))
        tensor([[4., 0.]])
    """
    if channels not in ("sum", "mean"):
        raise ValueError(f"channels must be 'sum' or 'mean', got {channels!r}.")
    if attribution.dim() not in (2, 3):
        raise ValueError(
            "An image's attribution must have the shape (C, H, W) or (H, W), got "
            f"{tuple(attribution.shape)}. Pass one sample at a time, e.g. attribution[0]."
        )
    check_finite(attribution)
    values = attribution.detach().float()
    if values.dim() == 3:
        values = values.sum(0) if channels == "sum" else values.mean(0)
    return values if grid is None else by_patch(values, grid)


def check_finite(attribution: Tensor) -> None:
    """Raises an error for NaN and infinite values, which no colour can represent.

    Args:
        attribution: Any attribution.

    Raises:
        ValueError: If a value is not finite; the message says how many.
    """
    bad = int((~torch.isfinite(attribution)).sum())
    if bad:
        raise ValueError(
            f"{bad} of the attribution's {attribution.numel()} values are NaN or infinite, so they "
            "can't be shown. Look for an overflow (half precision?) or a division by zero in the "
            "model or in the attribution method."
        )


def smooth_patches(values: Tensor) -> Tensor:
    """Interpolates bilinearly between the patches of a patch-wise constant map.

    An attention-based attribution is exact for patches: all pixels of a patch have one value. The
    patch size is read from the map itself, as the largest grid on which it is constant. A map that
    is not constant on patches comes back as it is.

    Args:
        values: A map ``(H, W)``.

    Returns:
        The smooth map, ``(H, W)``.

    Example:
        >>> import torch
        >>> values = torch.tensor([[0.0, 4.0]]).repeat_interleave(2, 1)
        >>> smooth_patches(values)
        tensor([[0., 1., 3., 4.]])
    """
    height, width = _patch_length(values), _patch_length(values.T)
    if height == width == 1:
        return values
    return resize(values[::height, ::width], (values.shape[0], values.shape[1]), smooth=True)


def resize(values: Tensor, size: tuple[int, int], *, smooth: bool) -> Tensor:
    """Resizes a map, for instance from one value per patch to one per pixel.

    Args:
        values: A map ``(h, w)``.
        size: The new height and width.
        smooth: Interpolate bilinearly; otherwise every value becomes a block, or where the map gets
            smaller, the mean of several becomes one value.

    Returns:
        The map with the given size.
    """
    if smooth:
        out = F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)
    elif size[0] < values.shape[0] or size[1] < values.shape[1]:
        out = F.adaptive_avg_pool2d(values[None, None], size)
    else:
        out = F.interpolate(values[None, None], size, mode="nearest-exact")
    return out[0, 0]


def scale_map(
    values: Tensor, *, sign: Sign = "auto", scale: float | None = None, quantile: float = 0.995
) -> ScaledMap:
    """Divides a map by its colour scale and clips values beyond it.

    Args:
        values: A finite map of any shape.
        sign: The part to show, see `Sign`.
        scale: The attribution that gets the strongest colour. Fix it to compare maps with each
            other; by default every map has its own.
        quantile: If a map has its own scale, it is this quantile of the absolute values, so that a
            few outliers don't leave the rest without colour. 1 is the maximum.

    Returns:
        The scaled values, their scale and whether they are signed.

    Raises:
        ValueError: If an option is invalid.

    Example:
        >>> import torch
        >>> scale_map(torch.tensor([-1.0, 0.0, 4.0]), scale=2.0)
        ScaledMap(values=tensor([-0.5000,  0.0000,  1.0000]), scale=2.0, signed=True)
    """
    if sign not in ("auto", "signed", "positive", "absolute"):
        raise ValueError(f"sign must be 'auto', 'signed', 'positive' or 'absolute', got {sign!r}.")
    if scale is not None and not (scale > 0 and math.isfinite(scale)):
        raise ValueError(
            f"scale must be a positive number, or None for each map's own, got {scale}."
        )
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}.")
    signed = sign == "signed" or (sign == "auto" and bool((values < 0).any()))
    if sign == "absolute":
        values = values.abs()
    elif not signed:
        values = values.clamp(min=0)
    if scale is None:
        scale = _own_scale(values, quantile)
    if scale == 0:
        return ScaledMap(torch.zeros_like(values), 0.0, signed)
    return ScaledMap((values / scale).clamp(-1, 1), scale, signed)


def common_scale(attributions: Iterable[Tensor], **options: Unpack[MapOptions]) -> MapOptions:
    """Returns options that give several attributions the same colour scale, to compare them.

    Pass them to all pictures that are to be compared: images, classes, epochs.

    Args:
        attributions: All of them, each ``(C, H, W)`` or ``(H, W)``.
        **options: How they are drawn; ``sign`` and ``scale`` are determined unless given.

    Returns:
        The options. The sign is ``"signed"`` where it was ``"auto"`` and any of the attributions
        has negative values; the scale is the quantile of all values together.

    Raises:
        ValueError: If there is none, a shape isn't that of a map or a value is not finite.

    Example:
        >>> import torch
        >>> common_scale([torch.tensor([[1.0, 2.0]]), torch.tensor([[-4.0, 0.0]])])
        {'sign': 'signed', 'scale': 4.0}
    """
    channels, grid = options.get("channels", "sum"), options.get("grid")
    maps = [to_map(each, channels=channels, grid=grid).cpu() for each in attributions]
    if not maps:
        raise ValueError("There is no attribution to find a common scale of.")
    scaled = scale_map(
        torch.cat([values.flatten() for values in maps]),
        sign=options.get("sign", "auto"),
        scale=options.get("scale"),
        quantile=options.get("quantile", 0.995),
    )
    sign = options.get("sign", "auto")
    if sign == "auto":
        sign = "signed" if scaled.signed else "positive"
    # Maps of zeros fit any scale.
    return {**options, "sign": sign, "scale": scaled.scale or 1.0}


def _own_scale(values: Tensor, quantile: float) -> float:
    sizes = values.abs().flatten()
    # Not torch.quantile: it doesn't accept more than 2**24 values, and interpolates, so that the
    # strongest value of a small map would never be reached.
    own = float(sizes.kthvalue(math.ceil(quantile * len(sizes))).values)
    # A map with a handful of non-zero values has a quantile of zero.
    return own if own > 0 else float(sizes.max())


def _patch_length(values: Tensor) -> int:
    """Returns the largest length that divides the rows into runs of equal rows."""
    changes = (values[1:] != values[:-1]).any(1).nonzero().flatten() + 1
    return math.gcd(len(values), *changes.tolist())
