"""Explains in single precision a module that trains in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_callbacks.isolation.sharded import without_conversions

HALF = (torch.float16, torch.bfloat16)


def widened(tensor: Tensor) -> Tensor:
    """Converts a tensor of half precision to single precision.

    Args:
        tensor: Any tensor.

    Returns:
        A float32 copy, or the tensor itself if it isn't of half precision.

    Example:
        >>> widened(torch.ones(2, dtype=torch.bfloat16)).dtype, widened(torch.ones(1).long()).dtype
        (torch.float32, torch.int64)
    """
    return tensor.float() if tensor.dtype in HALF else tensor


@contextmanager
def in_single_precision(module: nn.Module) -> Iterator[None]:
    """Replaces a module's parameters and buffers of half precision by float32 copies.

    The parameters themselves, which an optimizer and a strategy hold, are not changed, and are put
    back on exit, even if the body raises. Inside, neither autocasting nor a policy of FSDP2
    converts anything to half precision.

    Args:
        module: The module.

    Example:
        >>> layer = torch.nn.Linear(2, 2).bfloat16()
        >>> weight = layer.weight
        >>> with in_single_precision(layer):
        ...     layer(torch.ones(1, 2)).dtype
        torch.float32
        >>> layer.weight is weight
        True
    """
    copies: dict[Tensor, Tensor] = {}
    places: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    for part in module.modules():
        for held in (part._parameters, part._buffers):  # noqa: SLF001
            for name, tensor in held.items():
                if tensor is not None and tensor.dtype in HALF:
                    places.append((held, name, tensor))  # type: ignore[arg-type]
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            for held, name, tensor in places:
                # Tied weights stay tied.
                if tensor not in copies:
                    copies[tensor] = _copy(tensor)
                held[name] = copies[tensor]
        with torch.autocast(_device_type(module), enabled=False), without_conversions(module):
            yield
    finally:
        for held, name, tensor in places:
            held[name] = tensor


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().float()
    if not isinstance(tensor, nn.Parameter):
        return copy
    return nn.Parameter(copy, requires_grad=tensor.requires_grad)


def _device_type(module: nn.Module) -> str:
    return next((tensor.device.type for tensor in module.parameters()), "cpu")
