"""Where a model is."""

from collections.abc import Callable
from typing import Any

import torch

from captum_transformer.calling.isolation import modules_of


def device_of(model: Callable[..., Any]) -> torch.device:
    """The device of the first parameter or buffer of what a forward function runs.

    Args:
        model: the model, or a function that runs one.
    """
    for _, module in modules_of(model):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            return tensor.device
    return torch.get_default_device()
