"""How relevance is summed up and divided."""

from collections.abc import Callable
from functools import lru_cache, reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from captum_transformer.trace.operation import Operand, Operation

# The stabiliser of the authors' code.
EPSILON = 1e-9
# The number of entries that are processed in full precision at a time: 16 MiB.
AT_ONCE = 2**22


@lru_cache(maxsize=64)
def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which relevance is summed up: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def dtype_with_operands(operation: "Operation", dtype: torch.dtype) -> torch.dtype:
    """The dtype, or a wider one that also holds the numbers of an operation's signals.

    A fill value, such as the lowest number of a dtype, must fit.
    """
    dtypes = [v.dtype for _, v in operation.traced() if v.dtype.is_floating_point]
    return reduce(torch.promote_types, dtypes, dtype)


def by_rows(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Applies an entrywise function to tensors of one shape, in chunks if they are large."""
    first = tensors[0]
    if first.ndim < 2 or first.numel() <= AT_ONCE:
        return function(*tensors)
    rows = max(1, AT_ONCE * first.shape[-2] // first.numel())
    parts = zip(*(torch.split(tensor, rows, -2) for tensor in tensors), strict=True)
    return torch.cat([function(*part) for part in parts], -2)


def in_full(operand: "Operand") -> Tensor:
    """An operand's data in the precision in which relevance is summed up."""
    return operand.tensor.to(accumulation_dtype(operand.dtype))


def ratio(numerator: Tensor, denominator: Tensor, epsilon: float | Tensor = EPSILON) -> Tensor:
    """Divides, stabilised as in the authors' code; returns zero where the denominator is zero."""
    stable = denominator + epsilon
    vanishes = stable == 0
    if isinstance(epsilon, Tensor):
        stable = torch.where(vanishes, epsilon, stable)
    else:
        stable.masked_fill_(vanishes, epsilon)
    return (numerator / stable).masked_fill_(denominator == 0, 0.0)


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divides; returns zero, with a derivative of zero, where the denominator is zero."""
    nothing = denominator == 0
    return (numerator / denominator.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)
