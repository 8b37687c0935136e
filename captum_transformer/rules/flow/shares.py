"""How each kind of operation divides a share among the entries that its output is made of."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_transformer.rules.flow.presence import at_indices, signal
from captum_transformer.rules.propagate import rearranged, share_of_ids, transposed, unsupported
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.layout import chooses_features, mixes_features
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operand, Operation


def evenly(whole: Tensor, present: Tensor | None, size: torch.Size, dims: Sequence[int]) -> Tensor:
    """Divides shares evenly over some dimensions, or over the entries there that are present.

    Args:
        whole: the shares, of size one along these dimensions.
        present: one or zero for each entry; None if all are.
        size: of what gets them.
        dims: the dimensions.
    """
    even = whole / torch.Size(size[dim] for dim in dims).numel()
    if present is None:
        return even.expand(size)
    total = present.sum(list(dims), keepdim=True)
    # A token without any goes on to where it was joined to the others.
    return torch.where(total == 0, even, present * quotient(whole, total))


def quotient(share: Tensor, total: Tensor) -> Tensor:
    """Shares for each unit of what they are divided among; none where there is nothing."""
    nothing = total == 0
    # Nor is a derivative of this infinite times zero.
    return (share / total.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one * other


def _present(operand: Operand, held: Tensor | None, like: Tensor) -> Tensor | None:
    """One for the entries that are of the signal and hold what the share is of."""
    weight = signal(operand, like)
    return held if weight is None else _both(held, (weight != 0).to(like.dtype))


def by_entry(operation: Operation, operand: Operand, share: Tensor) -> Tensor:  # noqa: ARG001
    """A share stays at its entry; what was repeated gets all of it."""
    return share.sum_to_size(operand.size)


def looked_up(operation: Operation, operand: Operand, share: Tensor) -> Tensor:
    """A token id gets the share of all features that were looked up for it."""
    if operand is operation.argument("weight"):
        raise unsupported(operation, "the table that is looked up in depends on the inputs")
    return share_of_ids(operation, operand, share)


def product(operation: Operation, operand: Operand, share: Tensor, held: Tensor | None) -> Tensor:
    """A product with constants: weights on features keep tokens apart, a matrix of tokens mixes.

    Each entry gets an equal part of what its token's features are made into, and of what tokens
    are made into a part by its weight.
    """
    letters, value = operation.contraction(), operand.value
    if letters is None or value is None:
        raise unsupported(operation, "it is no plain product over dimensions")
    summed = letters.summed(operand)
    if operand is letters.addend:
        return by_entry(operation, operand, share)
    declared = any(factor.role is Role.WEIGHT for factor in letters.factors)
    last = [len(value.shape) - 1]
    if declared or (mixes_features(value, summed) if value.features else summed == last):
        whole = _before_product(operation, operand, share)
        return evenly(whole, _present(operand, held, share), operand.size, summed)
    present = _present(operand, held, share)

    def constant(other: Operand) -> Tensor:
        tensor = other.like(share.dtype)
        if other is letters.addend:
            return torch.zeros_like(tensor)
        return tensor.abs() if other in letters.factors else tensor

    def weighted(point: Tensor) -> Tensor:
        result: Tensor = operation.run(lambda o: point if o is operand else constant(o))
        return result

    ones = share.new_ones(()).expand(value.shape) if present is None else present
    return _divided(weighted, ones, share)


def compared(operation: Operation, operand: Operand, share: Tensor) -> Tensor:
    """How similar two signals are, such as an image and a text: the features that are summed."""
    letters = operation.contraction()
    if letters is None or operand.value is None:
        raise unsupported(operation, "it is no plain product over dimensions")
    whole = _before_product(operation, operand, share)
    return evenly(whole, None, operand.size, letters.summed(operand))


def _before_product(operation: Operation, operand: Operand, share: Tensor) -> Tensor:
    """The share of a product at one of its factors, of size one along what is summed over."""
    letters = operation.contraction()
    if letters is None:
        raise unsupported(operation, "it is no plain product over dimensions")
    own = letters.of(operand)
    others = [dim for dim, letter in enumerate(letters.output) if letter not in own]
    share = share.sum(others) if others else share
    left = [letter for letter in letters.output if letter in own]
    share = share.permute([left.index(letter) for letter in own if letter in left])
    for dim in letters.summed(operand):
        share = share.unsqueeze(dim)
    kept = [1 if d in letters.summed(operand) else n for d, n in enumerate(operand.size)]
    return share.sum_to_size(kept)


def far(
    operation: Operation, operand: Operand, share: Tensor, held: Tensor | None = None
) -> Tensor:
    """How long a signal is, or how far from another: evenly to the features of that."""
    # Far from zero in all features alike, each has an equal part.
    point = share.new_full((), 2.0**20).expand(operand.size)
    point = point if held is None else point * held

    def length(point: Tensor) -> Tensor:
        result: Tensor = operation.run(
            lambda o: point if o is operand else share.new_zeros(()).expand(o.size)
        )
        return result

    return _divided(length, point, share)


def _divided(made: Callable[[Tensor], Tensor], point: Tensor, share: Tensor) -> Tensor:
    """Divides shares by the part that each entry of a point has in what is made of it."""
    with torch.enable_grad():
        leaf = point.clone().requires_grad_()
        output = made(leaf)
    pieces = quotient(share, output.detach())
    (part,) = torch.autograd.grad(output, leaf, pieces, create_graph=share.requires_grad)
    return part * point


def receptive_field(
    operation: Operation, operand: Operand, share: Tensor, held: Tensor | None
) -> Tensor:
    """Every entry of an output's receptive field gets an equal part of its share, padding none."""
    weight = next(o for o in operation.operands if o is not operand)
    groups: int = operation.argument("groups", 1)
    single = len(operand.size) < len(weight.size)  # one sample, without an axis for it
    size = torch.Size((1, *operand.size)) if single else operand.size
    channels = size[1]
    grouped = share.unsqueeze(0) if single else share
    grouped = grouped.reshape(len(grouped), groups, -1, *grouped.shape[2:]).sum(2)
    names = {"stride": 1, "padding": 0, "dilation": 1}
    filters = (groups, channels // groups)
    if operation.kind is Kind.TRANSPOSED_CONV:
        names |= {"output_padding": 0}
        filters = (channels, 1)
    ones = share.new_ones(*filters, *weight.size[2:])
    arguments = {name: operation.argument(name, default) for name, default in names.items()}
    present = _present(operand, held, share)
    if present is None:
        present = share.new_ones(1, *size[1:])
    elif single:
        present = present.unsqueeze(0)

    def count(point: Tensor) -> Tensor:
        result: Tensor = operation.call(point, ones, None, **arguments, groups=groups)
        return result

    with torch.no_grad():
        counts = count(present)
    blank = share.new_empty(size).requires_grad_()
    with torch.enable_grad():
        output = count(blank)
    # What a transposed convolution leaves blank between its strides is made of nothing.
    pieces = quotient(grouped, counts)
    (result,) = torch.autograd.grad(output, blank, pieces, create_graph=share.requires_grad)
    return (result * present).reshape(operand.size)


def summed(operation: Operation, operand: Operand, share: Tensor, held: Tensor | None) -> Tensor:
    """The terms get equal parts; masked or weighted ones in proportion to their weight."""
    weights = _both(signal(operand, share, weighted=True), held)
    if weights is None:
        weights = share.new_ones(operand.size)
    with torch.no_grad():
        total = operation.replay([weights])[0]
    (part,) = rearranged(operation, [quotient(share, total)])
    if part is None:
        raise unsupported(operation, "the sum does not depend on its operand")
    return weights * part


def summed_at_indices(
    operation: Operation, share: Tensor, held: list[Tensor | None]
) -> list[Tensor | None]:
    """The same where indices say which sum each term belongs to, as with experts' outputs."""
    weights = []
    for (operand, _), terms in zip(operation.traced(), held, strict=True):
        weight = _both(signal(operand, share, weighted=True), terms)
        weights.append(share.new_ones(operand.size) if weight is None else weight)
    parts = transposed(operation, weights, [quotient(share, at_indices(operation, weights))])
    return [None if p is None else w * p for w, p in zip(weights, parts, strict=True)]


def added_at_indices(
    operation: Operation,
    operand: Operand,  # noqa: ARG001 - the only one
    share: Tensor,
    held: Tensor | None,
) -> Tensor:
    """The same beside a constant."""
    (part,) = summed_at_indices(operation, share, [held])
    if part is None:
        raise unsupported(operation, "the sum does not depend on its operand")
    return part


def pooled(operation: Operation, shares: list[Tensor | None]) -> list[Tensor | None]:
    """Each output's share, by the part that an entry has in it: all of it for a maximum.

    What was padded is no entry: the others of its window share alone.
    """
    share = shares[0]
    operands = [operand for operand, _ in operation.traced()]
    points = [in_full(operand) for operand in operands]
    mixes = operation.kind is Kind.POOL
    if not mixes or len(points) != 1 or len(operation.outputs) != 1 or share is None:
        return transposed(operation, points, shares)
    present = None
    if operation.argument("kernel_size") is not None:
        present = _present(operands[0], None, share)
    if present is None:
        present = torch.ones_like(points[0])
    with torch.no_grad():
        (whole,) = operation.replay([present])
    (part,) = transposed(operation, points, [quotient(share, whole)])
    return [None if part is None else part * present]


def chosen(operation: Operation, shares: list[Tensor | None]) -> list[Tensor | None]:
    """The largest of a token's features, as of a router's experts, tell of all; others move."""
    share, (operand, _) = shares[0], operation.traced()[0]
    kept = share is not None and share.ndim == len(operand.size)
    if share is None or not kept or not chooses_features(operation):
        return pooled(operation, shares)
    whole = share.sum(-1, keepdim=True)
    return [evenly(whole, _present(operand, None, share), operand.size, [-1])]
