"""The methods as the ``explain_func`` of Quantus."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from captum_transformer.explainers.device import device_of

__all__ = ["explain_func"]


def explain_func(
    method: Callable[..., Any], **options: Any
) -> "Callable[..., np.ndarray[Any, np.dtype[Any]]]":
    """Returns the function with which Quantus explains the samples that it has changed.

    Args:
        method: a class of this package, such as ``AttnLRP``.
        **options: its arguments in addition to the model.

    Returns:
        A function of ``model``, ``inputs`` and ``targets`` that returns the relevance, an array
        like the inputs. Further arguments of Quantus, such as the device, are ignored, since they
        are known from the model.

    Example:
        >>> import numpy as np, timm
        >>> from captum_transformer import AttnLRP
        >>> from captum_transformer.adapters.quantus import explain_func
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, depth=2)
        >>> images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
        >>> explain_func(AttnLRP)(model, images, np.array([3, 5])).shape
        (2, 3, 32, 32)
    """

    def explain(
        model: Callable[..., Any],
        inputs: Any,
        targets: Any,
        **_: Any,
    ) -> "np.ndarray[Any, np.dtype[Any]]":
        device = device_of(model)
        given = torch.as_tensor(np.asarray(inputs)).to(device)
        chosen = torch.as_tensor(np.asarray(targets)).to(device)
        relevance = method(model, **options).attribute(given, target=chosen)
        array: np.ndarray[Any, np.dtype[Any]] = relevance.float().cpu().numpy()
        return array

    return explain
