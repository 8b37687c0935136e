"""Derivatives by autograd, with an error that explains why one can't be computed."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.history import listed
from captum_transformer.trace.operation import Operation


def derivatives(
    total: Tensor | Sequence[Tensor] | Sequence[GradientEdge],
    points: Sequence[GradientEdge],
    operations: Iterable[Operation],
    slopes: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor | None, ...]:
    """Returns the derivatives of a number at some points, None where it doesn't depend on a point.

    Args:
        total: the number, or tensors that it depends on, or their positions in the autograd graph.
        points: the positions of the points in the autograd graph.
        operations: the operations that the model has run.
        slopes: the derivatives of the number by each of the tensors in ``total``; None if ``total``
            is the number itself.

    Raises:
        UnsupportedOperationError: if autograd can't differentiate because of an in-place operation,
            or has no derivative of a function.
    """
    try:
        with missing_ones_refused():
            return torch.autograd.grad(total, points, slopes, retain_graph=True, allow_unused=True)
    except RuntimeError as reason:
        if "modified by an inplace operation" not in str(reason):
            raise
        writes = (o.described for o in operations if o.function.inplace)
        raise UnsupportedOperationError(
            "The model modifies a tensor in place that autograd has saved for the gradient, so "
            "torch can't compute the gradient, even without this package. One of these operations "
            "is the cause: "
            f"{listed(writes)}. Use an out-of-place operation there, such as `y = y + z` for `y "
            "+= z`, or write into a copy, or choose a method without gradients, such as "
            "RawAttention. "
            f"({str(reason).split('. Hint')[0]}.)"
        ) from reason


@contextmanager
def missing_ones_refused() -> Iterator[None]:
    """Refuses what autograd records, and then has no derivative of in this version of PyTorch."""
    try:
        yield
    except RuntimeError as reason:
        found = re.search(r"derivative for (.+?) is not implemented", str(reason))
        if found is None:
            raise
        raise UnsupportedOperationError(
            f"PyTorch {torch.__version__} has no derivative of {found[1]}, which the model or an "
            "explanation of it needs. Write that step of the model with other functions, or try a "
            "newer PyTorch."
        ) from reason
