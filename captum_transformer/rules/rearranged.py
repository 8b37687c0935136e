"""The transpose of operations that move entries: moves entries back to where they came from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.rules.propagate import transposed
from captum_transformer.trace.kinds import Form, Kind
from captum_transformer.trace.numeric import dtype_with_operands
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.views import views_of


def rearranged(operation: Operation, cotangents: list[Tensor | None]) -> list[Tensor | None]:
    """Applies the transpose of an operation that only moves, copies or drops entries.

    The cotangent of a complex number is one real number for both of its parts.
    """
    some = next(c for c in cotangents if c is not None)
    if operation.kind is Kind.AS_COMPLEX:
        return [torch.stack([some / 2, some / 2], -1)]
    if operation.kind is Kind.AS_REAL:
        return [some.sum(-1)]
    if operation.kind is Kind.PAD:
        back = _cropped(operation, some)
    else:
        back = _in_order(operation, some)
        back = _put_back(operation, cotangents) if back is None else back
    if back is not None:
        return [back]
    if operation.form is Form.ORDERS:
        return [_ordered(operation, some)]
    dtype = dtype_with_operands(operation, some.dtype)
    blanks = [value.blank(dtype) for _, value in operation.traced()]
    return transposed(operation, blanks, cotangents)


def _in_order(operation: Operation, cotangent: Tensor) -> Tensor | None:
    """Returns the cotangent in the operand's order, or None if entries are repeated or dropped."""
    views = views_of(operation)
    if views is None or len(views) != 1 or (order := views[0].order()) is None:
        return None
    ((_, value),) = operation.traced()
    if views[0].numel() != value.shape.numel():
        return None
    if order != tuple(range(len(order))):
        cotangent = cotangent.permute(order)
    if cotangent.requires_grad:
        return cotangent.reshape(value.shape)
    # A cotangent that is expanded over the last dimensions stays so, and is not copied. (The
    # derivative would take more steps.)
    even, sizes, steps = 0, cotangent.shape, cotangent.stride()
    for ours, theirs, step in zip(sizes[::-1], value.shape[::-1], steps[::-1], strict=False):
        if step or ours != theirs or not ours:
            break
        even += 1
    if not even:
        return cotangent.reshape(value.shape)
    single = cotangent
    for dim in range(-even, 0):
        single = single.narrow(dim, 0, 1)
    return single.reshape(*value.shape[:-even], *[1] * even).expand(value.shape)


def _ordered(operation: Operation, cotangent: Tensor) -> Tensor:
    """Returns the cotangent with its entries in the order that they had before.

    The order may change along some dimensions; a cotangent expanded over the others stays so.
    """
    ((_, value),) = operation.traced()
    moved = operation.along(cotangent.ndim) or range(cotangent.ndim)
    steps = enumerate(cotangent.stride())
    single = [slice(None) if step or dim in moved else slice(1) for dim, step in steps]
    given = cotangent[tuple(single)]
    (back,) = transposed(operation, [value.blank(cotangent.dtype)[tuple(single)]], [given])
    whole: Tensor = given if back is None else back
    return whole.expand(value.shape)


def _put_back(operation: Operation, cotangents: Sequence[Tensor | None]) -> Tensor | None:
    """Returns the cotangents at their places in the operand, if outputs show each entry once."""
    views = views_of(operation)
    if views is None or not all(view.shows_each_once() for view in views):
        return None
    given = [(place, c) for place, c in enumerate(cotangents) if c is not None]
    if any(cotangent.requires_grad for _, cotangent in given):
        return None
    ((_, value),) = operation.traced()
    (first, cotangent), *others = given
    whole = cotangent.new_zeros(value.shape)
    parts = operation.replay([whole])
    parts[first].copy_(cotangent)
    for place, further in others:
        parts[place].add_(further)
    return whole


def _cropped(operation: Operation, cotangent: Tensor) -> Tensor | None:
    """Returns the cotangent without the padding, or None if the padding is not constant."""
    mode, widths = operation.argument("mode", "constant"), operation.argument("pad")
    if mode != "constant" or len(operation.operands) != 1:
        return None
    return F.pad(cotangent, [-width for width in widths]) if any(widths) else cotangent
