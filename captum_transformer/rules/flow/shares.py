"""How each kind of operation divides a share among the entries that its output is made of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.rules.flow.presence import at_indices, factors, signal
from captum_transformer.rules.propagate import share_of_ids, transposed, unsupported
from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.features import chooses_features, feature_dims, mixes_features
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, Kind, Role
from captum_transformer.trace.numeric import in_full, quotient
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value


class Divided(NamedTuple):
    """The parts that a share of an output is divided into.

    Attributes:
        parts: the part of each signal.
        among: how much of the signals each entry of the output is made of: where that is zero,
            no signal gets the entry's share. None if it is zero nowhere.
    """

    parts: list[Tensor]
    among: Tensor | None = None


def evenly(whole: Tensor, present: Tensor | None, size: torch.Size, dims: Sequence[int]) -> Tensor:
    """Divides shares evenly over some dimensions, or over the entries there that are present.

    Args:
        whole: the shares, of size one along these dimensions.
        present: one or zero for each entry; None if all are.
        size: the size of the tensor that gets them.
        dims: the dimensions.
    """
    even = whole / torch.Size(size[dim] for dim in dims).numel()
    if present is None:
        return even.expand(size)
    total = present.sum(list(dims), keepdim=True)
    # A token without present entries passes its share on to where it was joined to the others.
    return torch.where(total == 0, even, present * quotient(whole, total))


def among_present(share: Tensor, present: Tensor, dims: list[int]) -> Tensor:
    """Divides the share of each token that lacks features evenly over those that are present.

    Other tokens keep theirs as it is: heads may have picked different tokens.
    """
    even = evenly(share.sum(dims, keepdim=True), present, share.shape, dims)
    return torch.where(present.expand_as(share).amin(dims, keepdim=True) < 1, even, share)


def divided(
    made: Callable[[list[Tensor]], Tensor], points: Sequence[Tensor], share: Tensor
) -> Divided:
    """Divides shares in proportion to the part that each entry has in a function of them all.

    Args:
        made: a sum with positive weights, or another function that scales with its arguments.
        points: how much of each signal there is at each entry.
        share: the shares, with the shape of the function's result.
    """
    with torch.enable_grad():
        leaves = [point.clone().requires_grad_() for point in points]
        output = made(leaves)
    among = output.detach()
    pieces = quotient(share, among)
    found = torch.autograd.grad(output, leaves, pieces, create_graph=share.requires_grad)
    # Entries that are left out of a sum may be NaN.
    kept = (point.masked_fill(point.isnan(), 0.0) for point in points)
    return Divided([part * point for part, point in zip(found, kept, strict=True)], among)


def _present(
    operand: Operand, held: Tensor | None, like: Tensor, *, weighted: bool = False
) -> Tensor | None:
    """Returns how much of the share's source each entry carries, or None if all are alike."""
    found = signal(operand, like, weighted=weighted)
    if found is not None and not weighted:
        found = (found != 0).to(like.dtype)
    return held if found is None else found if held is None else found * held


def _filled(operand: Operand, held: Tensor | None, like: Tensor, *, weighted: bool) -> Tensor:
    present = _present(operand, held, like, weighted=weighted)
    return like.new_ones(()).expand(operand.size) if present is None else present


def unmasked(share: Tensor, left: Tensor, value: Value) -> tuple[Tensor, Tensor]:
    """Moves the share of masked entries to the same token's other features, if any are left.

    Args:
        share: a share of each entry of a value.
        left: one for each entry, or zero where a constant has replaced it.
        value: the value.

    Returns:
        The share, and how much is left of each token: zero where all of it is masked.
    """
    left = left.reshape((1,) * (share.ndim - left.ndim) + left.shape)
    part, dims = share * left, [dim for dim in feature_dims(value) if left.shape[dim] > 1]
    if not dims:
        return part, left
    total = left.sum(dims, keepdim=True)
    return part + left * quotient((share - part).sum(dims, keepdim=True), total), total


def by_entry(operation: Operation, operand: Operand, share: Tensor, *_: Tensor | None) -> Divided:
    """Leaves a share at its entry, unless a constant masks it; repeated entries get the sum."""
    among, output = factors(operation, share), operation.outputs[0]
    if among is not None and output is not None:
        share, among = unmasked(share, among, output)
    return Divided([share.sum_to_size(operand.size)], among)


def looked_up(operation: Operation, operand: Operand, share: Tensor, *_: Tensor | None) -> Divided:
    """Gives a token id the share of all features that were looked up for it."""
    return Divided([share_of_ids(operation, operand, share)])


def product(operation: Operation, operand: Operand, share: Tensor, held: Tensor | None) -> Divided:
    """Divides the share of a product with constants, which mixes features of a token, or tokens.

    If it mixes features, all features of a token get equal parts. If it mixes tokens, each gets a
    part in proportion to its weight.
    """
    letters, value = _letters(operation), operand.value
    summed = letters.summed(operand)
    if operand is letters.addend or value is None:
        return by_entry(operation, operand, share)
    declared = any(factor.role is Role.WEIGHT for factor in letters.factors)
    if not declared and value.features is None:
        raise unsupported(
            operation,
            "whether it mixes features of each token or tokens is not known: the operations "
            "before don't show which dimensions are features",
        )
    if declared or mixes_features(value, summed):
        return compared(operation, operand, share, _present(operand, held, share))

    def constant(other: Operand) -> Tensor:
        tensor = other.like(share.dtype)
        if other is letters.addend:
            return torch.zeros_like(tensor)
        return tensor.abs() if other in letters.factors else tensor

    def weighted(points: list[Tensor]) -> Tensor:
        result: Tensor = operation.run(lambda o: points[0] if o is operand else constant(o))
        return result

    return divided(weighted, [_filled(operand, held, share, weighted=False)], share)


def compared(
    operation: Operation, operand: Operand, share: Tensor, present: Tensor | None = None
) -> Divided:
    """Divides the share of a similarity, as of an image and a text, evenly among the features."""
    letters = _letters(operation)
    if operand is letters.addend:
        return by_entry(operation, operand, share)
    own, summed = letters.of(operand), letters.summed(operand)
    others = [dim for dim, letter in enumerate(letters.output) if letter not in own]
    share = share.sum(others) if others else share
    left = [letter for letter in letters.output if letter in own]
    share = share.permute([left.index(letter) for letter in own if letter in left])
    for dim in summed:
        share = share.unsqueeze(dim)
    whole = share.sum_to_size([1 if d in summed else n for d, n in enumerate(operand.size)])
    return Divided([evenly(whole, present, operand.size, summed)])


def _letters(operation: Operation) -> Contraction:
    letters = operation.contraction()
    if letters is None:
        raise unsupported(operation, "it isn't a plain product over dimensions")
    return letters


def far(
    operation: Operation, operand: Operand, share: Tensor, held: Tensor | None = None
) -> Divided:
    """Divides the share of a norm or a distance evenly among the features that it depends on."""
    order = operation.argument("p", operation.argument("ord"))
    if isinstance(order, (int, float)) and order <= 0:
        raise unsupported(operation, "a norm of this order doesn't scale with all entries equally")
    # Equally far from zero in all features, each feature has an equal part.
    point = 2.0**20 * _filled(operand, held, share, weighted=False)

    def length(points: list[Tensor]) -> Tensor:
        result: Tensor = operation.run(
            lambda o: points[0] if o is operand else share.new_zeros(()).expand(o.size)
        )
        return result

    return divided(length, [point], share)


_STEPS = frozenset({"stride", "padding", "output_padding", "dilation"})


def receptive_field(
    operation: Operation, operand: Operand, share: Tensor, held: Tensor | None
) -> Divided:
    """Divides an output's share evenly among the entries of its receptive field, but padding."""
    weight = next(o for o in operation.operands if o is not operand)
    groups: int = operation.argument("groups", 1)
    single = len(operand.size) < len(weight.size)  # one sample, without an axis for it
    whole = share.unsqueeze(0) if single else share
    # All filters of a group are alike here: one stands for them.
    each = whole.shape[1] // groups
    grouped = whole.reshape(len(whole), groups, each, *whole.shape[2:]).sum(2)
    channels = operand.size[0 if single else 1]
    filters = (groups, channels // groups)
    if operation.kind is Kind.TRANSPOSED_CONV:
        filters = (channels, 1)
    ones = share.new_ones(*filters, *weight.size[2:])
    # As they were given: kernels that are called directly don't take a number for a list.
    arguments = {name: given for name, given in operation.arguments.items() if name in _STEPS}

    def count(points: list[Tensor]) -> Tensor:
        point = points[0].unsqueeze(0) if single else points[0]
        result: Tensor = operation.call(point, ones, None, **arguments, groups=groups)
        return result

    parts, among = divided(count, [_filled(operand, held, share, weighted=False)], grouped)
    # The gaps that a transposed convolution leaves between its strides are made of no entry.
    of_each = among if among is None else among.repeat_interleave(each, 1).reshape(share.shape)
    return Divided(parts, of_each)


def summed(operation: Operation, operand: Operand, share: Tensor, held: Tensor | None) -> Divided:
    """Divides a share equally among features, or among other terms by their weights, if any."""
    value = operand.value
    of_features = (
        value is not None
        and (dims := operation.along(len(value.shape)))
        and mixes_features(value, dims)
    )
    weights = _filled(operand, held, share, weighted=not of_features)
    return divided(lambda points: operation.replay(points)[0], [weights], share)


def summed_at_indices(
    operation: Operation, share: Tensor, held: Sequence[Tensor | None]
) -> Divided:
    """Does the same as `summed` if indices assign terms to sums, as with experts' outputs."""
    weights = [
        _filled(operand, terms, share, weighted=True)
        for (operand, _), terms in zip(operation.traced(), held, strict=True)
    ]
    return divided(lambda points: at_indices(operation, points), weights, share)


def selected(operation: Operation, shares: list[Tensor | None]) -> list[Tensor | None]:
    """Gives the share to the entries that were chosen, or to none where constants were chosen.

    If the largest of a token's features were chosen, as of a router's experts, all features of the
    token get equal parts.
    """
    share, (operand, _) = shares[0], operation.traced()[0]
    kept = share is not None and share.ndim == len(operand.size)
    if share is not None and kept and chooses_features(operation):
        whole = share.sum(-1, keepdim=True)
        return [evenly(whole, _present(operand, None, share), operand.size, [-1])]
    return transposed(operation, [in_full(o) for o, _ in operation.traced()], shares)


PICKED = frozenset({Kind.MAXIMUM, Kind.CHOICE})
Rule = Callable[[Operation, Operand, Tensor, Tensor | None], Divided]
# Rules for a single signal, entry by entry.
ENTRY_RULES: dict[Kind, Rule] = {
    **dict.fromkeys(BY_ENTRY, by_entry),
    Kind.EMBEDDING: looked_up,
}
# Rules for a single signal whose entries are reduced to fewer; only some may hold a source.
MIXED_RULES: dict[Kind, Rule] = {
    Kind.PRODUCT: product,
    **dict.fromkeys(CONVOLUTIONS, receptive_field),
    **dict.fromkeys((Kind.SUM, Kind.MEAN, Kind.POOL), summed),
    Kind.DISTANCE: far,
    Kind.SUM_AT_INDICES: lambda operation, _, share, held: summed_at_indices(
        operation, share, [held]
    ),
}
# Rules for each of several signals, for a share of its own.
MEETING_RULES: dict[Kind, Rule] = {
    **dict.fromkeys((Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV, Kind.CONTRAST), by_entry),
    Kind.PRODUCT: compared,
    Kind.DISTANCE: far,
}
