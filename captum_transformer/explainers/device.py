"""The device and precision of a model."""

from collections.abc import Callable
from typing import Any

import torch

from captum_transformer.calling.isolation import modules_of


def device_of(model: Callable[..., Any]) -> torch.device:
    """Returns the device of the first parameter or buffer that a forward function uses.

    Args:
        model: the model, or a function that runs one.
    """
    for _, module in modules_of(model):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            return tensor.device
    return torch.get_default_device()


def precision_of(model: Callable[..., Any]) -> torch.dtype | None:
    """Returns the floating-point type of all parameters that a forward function uses.

    Args:
        model: the model, or a function that runs one.

    Returns:
        The type, or None if there are several or none, so that the model casts its inputs itself.
    """
    found = {
        parameter.dtype
        for _, module in modules_of(model)
        for parameter in module.parameters(recurse=False)
        if parameter.is_floating_point()
    }
    return found.pop() if len(found) == 1 else None
