"""The LN rule (Ali et al., eq. 12): what divides the signal in a norm is held constant.

A norm computes what it always does, with its own kernel; only its gradient is another one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_transformer.rules.gradient.call_arguments import as_function_of, tensor_first
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import accumulation_dtype


def hold_denominator(
    kind: Kind,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    name: str,
    hold_mean: bool = False,
) -> Any:
    """Runs a norm, or the step of one that is written in Python, with its denominator held.

    Returns:
        The operation's result; ``NotImplemented`` if the operation divides by nothing.
    """
    if kind is Kind.DIV and len(args) == 2 and isinstance(args[1], Tensor):
        return call(args[0], args[1].detach(), **kwargs)
    if kind is Kind.RECIPROCAL:
        output = call(*args, **kwargs)
        return output.detach_() if args and output is args[0] else output.detach()
    if name not in _NORMS:
        return NotImplemented
    norm = _NORMS[name](hold_mean, *args, **tensor_first(kwargs))
    weight = None if norm.weight is None else norm.weight.detach()
    run = as_function_of(norm.tensor, call, args, kwargs)
    return _HeldNorm.apply(norm.tensor, run, weight, norm.statistics)


@dataclass(frozen=True)
class _Statistics:
    """What a norm divides by.

    Attributes:
        rows: a shape for the input in which each row is normalised by itself.
        eps: what is added to the variance.
        centred: whether the mean is subtracted.
        hold_mean: whether that mean is held constant, too.
    """

    rows: tuple[int, ...]
    eps: float
    centred: bool
    hold_mean: bool = False

    def inverse_deviation(self, tensor: Tensor) -> Tensor:
        rows = tensor.to(accumulation_dtype(tensor.dtype)).reshape(self.rows)
        if not self.centred:
            return (rows.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        # Far faster than `var`.
        _, _, inverse = torch.native_layer_norm(rows, rows.shape[-1:], None, None, self.eps)
        return inverse


class _Norm(NamedTuple):
    """The arguments of a norm: what it normalises, the weights that then scale it, and how."""

    tensor: Tensor
    weight: Tensor | None
    statistics: _Statistics


class _HeldNorm(torch.autograd.Function):
    """A norm whose backward takes the deviation, and the mean if so wanted, as a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        run: Callable[[Tensor], Tensor],
        weight: Tensor | None,
        statistics: _Statistics,
    ) -> Tensor:
        ctx.save_for_backward(tensor, weight)
        ctx.statistics = statistics
        return run(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tensor, weight = ctx.saved_tensors
        statistics: _Statistics = ctx.statistics
        inverse = statistics.inverse_deviation(tensor)
        slope = gradients[0].to(inverse.dtype)
        if weight is not None:
            slope = slope * weight
        slope = slope.reshape(statistics.rows) * inverse
        if statistics.centred and not statistics.hold_mean:
            slope -= slope.mean(-1, keepdim=True)
        return slope.reshape(tensor.shape).to(tensor.dtype), None, None, None


def _layer_norm(
    hold_mean: bool,
    tensor: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,  # noqa: ARG001
    eps: float = 1e-5,
    *_: Any,
) -> _Norm:
    rows = _rows(tensor, normalized_shape)
    return _Norm(tensor, weight, _Statistics(rows, eps, centred=True, hold_mean=hold_mean))


def _rms_norm(
    _: bool,
    tensor: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> _Norm:
    if eps is None:
        eps = torch.finfo(accumulation_dtype(tensor.dtype)).eps
    rows = _rows(tensor, normalized_shape)
    return _Norm(tensor, weight, _Statistics(rows, eps, centred=False))


def _group_norm(
    hold_mean: bool,
    tensor: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,  # noqa: ARG001
    eps: float = 1e-5,
    *_: Any,
) -> _Norm:
    if weight is not None:
        weight = weight.reshape(1, -1, *[1] * (tensor.ndim - 2))
    rows = (tensor.shape[0], num_groups, -1)
    return _Norm(tensor, weight, _Statistics(rows, eps, centred=True, hold_mean=hold_mean))


def _rows(tensor: Tensor, normalized_shape: Any) -> tuple[int, ...]:
    lead = tensor.ndim - len(tuple(normalized_shape))
    return (*tensor.shape[:lead], prod(tensor.shape[lead:]))


_NORMS: dict[str, Callable[..., _Norm]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
}
