"""LRP-gamma in linear layers, as a gradient (Ali et al., ICML 2022)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.gradient.call_arguments import tensor_first


@dataclass(frozen=True)
class Gamma:
    """The LRP-gamma rule for one linear layer.

    Attributes:
        gamma: how much the positive weights are favoured.
        keeps_output: whether the layer still returns what it did without the rule.
    """

    gamma: float
    keeps_output: bool


def favour_positive(
    gamma: Gamma, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Runs a linear layer whose positive weights count for more."""
    if name == "linear":
        return _linear(gamma, *args, **tensor_first(kwargs))
    if kwargs:
        raise UnsupportedOperationError(
            f"LRP-gamma has no rule for `{name}` with {sorted(kwargs)}; use gamma=0."
        )
    bias, tensor, weight = args
    return _linear(gamma, tensor, weight.T, bias)


def _linear(gamma: Gamma, tensor: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    favoured = weight.detach() + gamma.gamma * weight.detach().clamp(min=0)
    shift = None if bias is None else bias.detach() + gamma.gamma * bias.detach().clamp(min=0)
    output = F.linear(tensor, favoured, shift)
    if not gamma.keeps_output:
        return output
    plain = F.linear(tensor.detach(), weight.detach(), None if bias is None else bias.detach())
    held = output.detach()
    slope = torch.where(held == 0, torch.zeros_like(held), plain / held)
    return plain + (output - held) * slope
