"""Derivatives of linear maps with known weights, for any kernel that runs them.

A quantised weight represents a matrix, and the map is linear in its signal with this matrix. The
rounding of activations in a kernel is not part of the map, and has no derivative.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from captum_transformer.trace.kinds import CONVOLUTIONS, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.storages import is_plain

LINEAR_MAPS = CONVOLUTIONS | {Kind.PRODUCT}


def signal_of_wrapped(operation: Operation) -> Tensor | None:
    """Returns the signal of a linear map whose weights aren't a plain tensor, or None."""
    traced = operation.traced()
    if len(traced) != 1:
        return None
    ((signal, _),) = traced
    for operand in operation.operands:
        if operand is not signal and not is_plain(operand.given):
            return signal.given
    return None


def with_derivative(operation: Operation, signal: Tensor, result: Tensor) -> Tensor:
    """Returns the output of a linear map, with a derivative for its signal if it had none."""
    if not signal.requires_grad or _descends(result, signal):
        return result
    others = [result] if result.requires_grad else []  # for example because of a trainable bias
    return _Linear.apply([result.detach()], operation, signal, *others)  # type: ignore[no-any-return]


def _descends(result: Tensor, signal: Tensor) -> bool:
    """Whether autograd can differentiate a result by its source, through implemented nodes only."""
    source = get_gradient_edge(signal).node
    stack: list[Any] = [result.grad_fn]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen or node.name().endswith("NotImplemented"):
            continue
        if node == source:
            return True
        seen.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
    return False


class _Linear(torch.autograd.Function):
    """Returns a given value, with the gradient of a linear map; reads weights only in backward."""

    @staticmethod
    def forward(
        ctx: Any, value: list[Tensor], operation: Operation, signal: Tensor, *others: Tensor
    ) -> Tensor:
        ctx.operation, ctx.shape, ctx.dtype = operation, signal.shape, signal.dtype
        ctx.others = len(others)
        return value.pop()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        anywhere = gradient.new_zeros(ctx.shape, dtype=ctx.dtype).requires_grad_()
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            (output,) = ctx.operation.replay([anywhere])
            (back,) = torch.autograd.grad(
                output, anywhere, gradient.to(output.dtype), create_graph=again
            )
        return None, None, back, *[gradient] * ctx.others
