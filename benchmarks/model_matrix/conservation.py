"""By how much ConservativeLRP fails to conserve a score where its theory says that it does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from benchmarks.model_matrix.family import Case
from captum_transformer import ConservativeLRP

# What is added to the signal and is no input: relevance of it is lost to the inputs.
_ADDED = "bias pos_embed position cls_token dist_token reg_token class_token class_embedding"
_ADDED += (
    " token_type wpe register mask_token distillation_token pos_embd pixel_pos patch_pos probe"
    " detection_tokens query_tokens time_embeddings latents token_projection"
)
_CURVED = ("gelu", "silu", "swish", "mish", "tanh")


class Straightened(TorchFunctionMode):
    """ReLU in the place of activations with a curved slope, wherever they are called."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "").strip("_") in _CURVED:
            return F.relu(args[0])
        return func(*args, **(kwargs or {}))


def conservation_error(case: Case) -> float:
    """The largest difference between the sum of relevance and the score, as a share of scores.

    Biases and other learned constants that are added are set to zero, and activations with a
    curved slope are exchanged for ReLU: for these the theory has no conservation.
    """
    case = replace(case, model=without_constants(copy.deepcopy(case.model)))
    with Straightened():
        relevance, delta = case.attribute(ConservativeLRP, return_convergence_delta=True)
    parts = relevance.values() if isinstance(relevance, dict) else [relevance]
    score = sum(part.flatten(1).sum(1) for part in parts) - delta
    return float(delta.abs().max() / score.abs().max())


def without_constants(model: nn.Module) -> nn.Module:
    """Zero for what is added, ReLU for activations that a module writes out of several steps."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = ".".join(name.lower().split(".")[-2:])  # a model may be named after its parts
            if any(part in own for part in _ADDED.split()):
                parameter.zero_()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if any(part in type(child).__name__.lower() for part in _CURVED):
                setattr(module, name, nn.ReLU())
    return model
