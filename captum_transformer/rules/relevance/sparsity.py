"""Where relevance is certainly zero, because the score is read from one token or class.

Between the score and the last attention call, only one row or one column of a linear layer has
relevance: the others need no products.
"""

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from captum_transformer.trace.axis import Axis, View
from captum_transformer.trace.kinds import BY_ENTRY, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import views_of


class NonzeroSlice(NamedTuple):
    """One index of an axis; all entries outside of it are zero.

    >>> import torch
    >>> first = NonzeroSlice(Axis.of((2, 3, 4), dim=1), 0)
    >>> first.of(torch.arange(24).view(2, 3, 4)).tolist()
    [[0, 1, 2, 3], [12, 13, 14, 15]]
    """

    axis: Axis
    at: int

    def of(self, tensor: Tensor) -> Tensor:
        """Returns the entries at the index: ``(outer, inner)``."""
        return tensor.reshape(self.axis)[:, self.at]

    def dim(self, shape: tuple[int, ...]) -> int | None:
        """Returns the dimension of a shape that the axis is, or None if it is none of them."""
        dims = (dim for dim in range(len(shape)) if Axis.of(shape, dim) == self.axis)
        return next(dims, None)


Sparsity = frozenset[NonzeroSlice]
DENSE: Sparsity = frozenset()


def sparsity_from(start: Value, tape: Tape) -> dict[Value, Sparsity]:
    """Returns the slices that contain the relevance of each value that a start leads back to.

    The relevance is zero outside of each slice.
    """
    found = {start: DENSE}
    last = -1 if start.operation is None else start.operation.index
    for operation in reversed(tape.operations[: last + 1]):
        reached = [found[value] for value in operation.outputs if value in found]
        single = len(operation.outputs) == 1
        for _, value in operation.traced() if reached else ():
            sparsity = _before(operation, value, reached[0]) if single else DENSE
            found[value] = sparsity & found.get(value, sparsity)
    return found


def _before(operation: Operation, value: Value, sparsity: Sparsity) -> Sparsity:
    """Returns the slices of an operation's operand, given those of its output."""
    output = operation.outputs[0]
    if output is None:
        return DENSE
    if operation.kind in BY_ENTRY and value.shape == output.shape:
        return sparsity
    if operation.kind is Kind.MOVE and (views := views_of(operation)) is not None:
        (view,) = views
        same = view.is_contiguous() and view.numel() == value.shape.numel()
        return sparsity if same else _picked(view, value.shape)
    product = operation.contraction() if sparsity else None
    if product is None or len(operation.traced()) > 1 or operation.attention is not None:
        return DENSE
    ((signal, _),) = operation.traced()
    own, dims = product.of(signal), ((s.dim(output.shape), s.at) for s in sparsity)
    kept = ((own.find(product.output[dim]), at) for dim, at in dims if dim is not None)
    whole = ((dim, at) for dim, at in kept if dim >= 0 and value.shape[dim] > 1)
    return frozenset(NonzeroSlice(Axis.of(value.shape, dim), at) for dim, at in whole)


@lru_cache(maxsize=4096)
def _picked(view: View, shape: tuple[int, ...]) -> Sparsity:
    """Returns the axes with the one index that a view of a contiguous tensor shows of them."""
    found = []
    for dim, length in enumerate(shape if 0 not in shape else ()):
        axis = Axis.of(shape, dim)
        whole = axis.inner * length
        steps = [(n - 1) * s for n, s in zip(view.shape, view.stride, strict=True) if s % whole]
        if length > 1 and view.offset % axis.inner + sum(steps) < axis.inner:
            found.append(NonzeroSlice(axis, view.offset // axis.inner % length))
    return frozenset(found)
