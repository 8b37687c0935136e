"""How relevance is summed up and divided."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from captum_transformer.trace.operation import Operand

# The stabiliser of the authors' code.
EPSILON = 1e-9


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which relevance is summed up: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def in_full(operand: "Operand") -> Tensor:
    """An operand's data in the precision in which relevance is summed up."""
    return operand.tensor.to(accumulation_dtype(operand.dtype))


def ratio(numerator: Tensor, denominator: Tensor, epsilon: float | Tensor = EPSILON) -> Tensor:
    """``numerator / denominator``, stabilised as in the authors' code; zero for a zero below."""
    stable = denominator + epsilon
    vanishes = stable == 0
    if isinstance(epsilon, Tensor):
        stable = torch.where(vanishes, epsilon, stable)
    else:
        stable.masked_fill_(vanishes, epsilon)
    return (numerator / stable).masked_fill_(denominator == 0, 0.0)


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``; zero, and with a derivative of zero, for a zero below."""
    nothing = denominator == 0
    return (numerator / denominator.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)
