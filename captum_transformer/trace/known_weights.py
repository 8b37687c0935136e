"""Linear maps whose weights are known, whatever kernel runs them: what autograd is told of them.

A quantised weight stands for a matrix, and the map is linear in its signal with this matrix. How a
kernel rounds activations on the way has no part in it, and has no derivative.
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
    """The signal of a linear map whose weights are no plain tensor, before it runs; else None."""
    traced = operation.traced()
    if len(traced) != 1:
        return None
    ((signal, _),) = traced
    for operand in operation.operands:
        if operand is not signal and not is_plain(operand.given):
            return signal.given
    return None


def with_derivative(operation: Operation, signal: Tensor, result: Tensor) -> Tensor:
    """What a linear map gave, with the derivative for its signal if its kernel has none."""
    if not signal.requires_grad or _descends(result, signal):
        return result
    others = [result] if result.requires_grad else []  # as from a bias that is trained
    return _Linear.apply([result.detach()], operation, signal, *others)  # type: ignore[no-any-return]


def _descends(result: Tensor, signal: Tensor) -> bool:
    """Whether autograd knows how one tensor was made of another, and not merely that it was."""
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
    """A given value with the gradient of the linear map, whose weights are read only for that."""

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
