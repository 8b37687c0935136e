"""Relevance and ground truth as tensors that fit each other, or an error that says why not."""

import torch
from torch import Tensor

from captum_transformer.calling.precision import widened
from captum_transformer.errors import InvalidInputError


def relevance_map(relevance: Tensor) -> Tensor:
    """Returns one value for each place of a sample; the channels of an image are summed.

    Args:
        relevance: ``(samples, channels, height, width)``, ``(samples, height, width)`` or, for
            tokens, ``(samples, tokens)``.

    Returns:
        Detached values ``(samples, height, width)`` or ``(samples, tokens)``, float64 if the device
        has it.

    Raises:
        InvalidInputError: If the shape is a different one, there are no values, or a value is not
            finite.
    """
    if relevance.dim() not in (2, 3, 4) or not relevance.numel():
        raise InvalidInputError(
            "Relevance must have the shape (samples, channels, height, width), (samples, height, "
            "width) or (samples, tokens) and hold at least one value, got "
            f"{tuple(relevance.shape)}."
        )
    values = widened(relevance.detach())
    bad = ~values.isfinite().flatten(1).all(1)
    if bad.any():
        raise InvalidInputError(
            f"The relevance of {rows(bad)} holds NaN or infinite values, so there is no "
            f"meaningful score. Look for an overflow (half precision?) or a division by zero in "
            f"the model "
            "or in the attribution method."
        )
    return values.sum(1) if values.dim() == 4 else values


def truth_mask(mask: Tensor, values: Tensor, name: str = "mask") -> Tensor:
    """Converts a mask to booleans.

    Args:
        mask: Booleans, or zeros and ones, of the shape of the map; for images, there may be an axis
            for one channel.
        values: The map that the mask belongs to, as returned by :func:`relevance_map`.
        name: The name of the argument, for error messages.

    Returns:
        Booleans of the shape of ``values``.

    Raises:
        InvalidInputError: If the shape is a different one, or a value is neither zero nor one.
    """
    if mask.dim() == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.shape != values.shape:
        raise InvalidInputError(
            f"`{name}` must have the shape of the relevance, its channels summed: "
            f"{tuple(values.shape)}, got {tuple(mask.shape)}. Resize relevance of patches to the "
            "size of the mask first, e.g. as in the CVPR 2021 paper: "
            "F.interpolate(relevance[:, None], scale_factor=16, mode='bilinear')."
        )
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise InvalidInputError(
            f"`{name}` must hold booleans, or zeros and ones. Convert it, e.g. with `mask > 0` or "
            "`mask == class_id`."
        )
    return mask.to(values.device, torch.bool)


def require_truth(mask: Tensor, name: str = "mask") -> None:
    """Raises an error if a mask is empty, as there is no right answer for it.

    Args:
        mask: Booleans ``(samples, ...)``.
        name: The name of the argument, for error messages.

    Raises:
        InvalidInputError: If the mask of a sample is empty; the message says which.
    """
    empty = ~mask.flatten(1).any(1)
    if empty.any():
        raise InvalidInputError(
            f"`{name}` of {rows(empty)} is empty: there is no right answer, so there is no score. "
            f"Leave these samples out: relevance[mask.flatten(1).any(1)]."
        )


def rows(chosen: Tensor) -> str:
    """Names the samples that a boolean tensor ``(samples,)`` selects, for messages.

    Example:
        >>> rows(torch.tensor([True, False, True]))
        '2 of 3 samples (0, 2)'
    """
    numbers = chosen.nonzero().flatten().tolist()
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"{len(numbers)} of {len(chosen)} samples ({shown})"


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Divides, and returns zero if the divisor is zero."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0.0)
