"""The most precise numbers that a device computes with."""

import functools

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def widest_float(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 for a device that has no float64, such as Apple's MPS.

    Example:
        >>> widest_float(torch.device("cpu"))
        torch.float64
    """
    return torch.float64 if _has_float64(device.type) else torch.float32


def widened(values: Tensor) -> Tensor:
    """Returns values in the widest floating point type of their device."""
    return values.to(widest_float(values.device))


@functools.cache
def _has_float64(device_type: str) -> bool:
    try:
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            torch.zeros(1, dtype=torch.float64, device=device_type)
    except (RuntimeError, TypeError):
        return False
    return True
