"""How the axes of a traced value follow from those of the operands of its operation."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from captum_transformer.trace.axis import Axis, View, pieces_in_view
from captum_transformer.trace.functions import ENTRY_WISE, SUMS_AT_INDICES, Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.views import views_of

_REARRANGED_WHOLE = frozenset(
    """
    reshape view flatten unflatten squeeze unsqueeze contiguous clone permute transpose movedim
    swapaxes to type float half bfloat16 double cpu cuda alias
    """.split()
)
# What picks entries along a dimension by their size, and where it is told which dimension.
_CHOICES = {"topk": (2, "dim"), "sort": (1, "dim")}
_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
# Rearrangements by indices, if they have any.
_BY_INDEX = frozenset(
    """
    getitem index_select gather take_along_dim take setitem index_put index_copy scatter
    masked_scatter
    """.split()
)
_NEW_FEATURES = {Kind.LINEAR: -1, Kind.EMBEDDING: -1, Kind.CONV: 1}


def lay_out(operation: Operation) -> None:
    """Fills in the axes and the origin of an operation's outputs."""
    traced = operation.traced()
    mixtures = _mixtures(operation, traced)
    views = views_of(operation) if operation.kind is Kind.SHAPE else None
    for place, output in enumerate(operation.outputs):
        if output is not None:
            _carry(operation, output, None if views is None else views[place])
            output.mixtures = mixtures
    first = operation.outputs[0]
    if first is None:
        return
    if operation.kind in _NEW_FEATURES:
        dim = _NEW_FEATURES[operation.kind]
        first.features = (Axis.of(first.shape, dim % len(first.shape)),)
    elif operation.kind is Kind.SOFTMAX:
        first.keys = _softmax_axis(operation, first)
    if operation.name in _REARRANGED_WHOLE and len(operation.outputs) == 1 and len(traced) == 1:
        first.origin = traced[0][1].origin


def _mixtures(operation: Operation, traced: list[tuple[Operand, Value]]) -> int:
    """What ties tokens in the operation's history, before it is known whether it is attention."""
    mixtures = 0
    for _, value in traced:
        mixtures |= value.mixtures
    ties = operation.kind is Kind.TRANSFORM
    if len(traced) > 1 and operation.kind is Kind.MATMUL:
        ties = True
    elif len(traced) > 1 and operation.kind is Kind.MUL:
        ties = len({value.weighs_tokens for _, value in traced}) > 1
    return mixtures | 1 << operation.index if ties else mixtures


def _carry(operation: Operation, output: Value, view: View | None) -> None:
    in_place = operation.kind in ENTRY_WISE and len(operation.outputs) == 1
    for operand, source in operation.traced():
        if in_place and source.shape == output.shape:
            output.samples = output.samples or source.samples
            output.keys = output.keys or source.keys
            output.features = output.features or source.features
        else:
            _carry_from(operation, operand, source, output, view)
        keys = source.keys
        if keys in source.features and output.keys not in output.features:
            # A softmax over a token's own features, such as experts, that are in one row with other
            # tokens' now: they weight no keys.
            output.keys = None


def _carry_from(
    operation: Operation, operand: Operand, source: Value, output: Value, view: View | None
) -> None:
    samples, keys = source.samples, source.keys
    if output.samples is None and samples is not None:
        output.samples = _samples(operation, operand, source, output, view)
        if output.samples is None and operation.kind is Kind.SHAPE:
            output.samples = _looked_up(operation, source, output)
    if output.keys is None and keys is not None:
        # Without some of the keys, such as an attention sink, they are probabilities still.
        kept_keys = None if view is None else keys.part_in_view(view)
        output.keys = kept_keys or _carried(operation, operand, keys, output, view)
    if output.features or operation.kind in _NEW_FEATURES:
        return
    if view is not None:
        output.features = pieces_in_view(source.features, view)
    else:
        kept = [_with_features(operation, operand, axis, output) for axis in source.features]
        output.features = tuple(axis for axis in kept if axis is not None)


def _samples(
    operation: Operation, operand: Operand, source: Value, output: Value, view: View | None
) -> Axis | None:
    """Where the samples lie in an output, from one of the operation's operands."""
    axis = source.samples
    if axis is None or axis.size == 1:
        return axis and Axis(1, 1, output.shape.numel())
    kept = _carried(operation, operand, axis, output, view)
    return kept if kept and _holds(operation, axis, source, kept, output) else None


def _holds(operation: Operation, before: Axis, source: Value, after: Axis, output: Value) -> bool:
    """Whether an axis that seems to be kept is, where indices say what goes where."""
    by_index = operation.name in SUMS_AT_INDICES or (
        operation.name in _BY_INDEX and len(operation.operands) > 1
    )
    one_to_one = len(operation.traced()) == len(operation.outputs) == 1
    if not by_index or not one_to_one or _picks_along_another(operation, before, source):
        return True
    numbers = _numbers(operation, before.size)
    sources = before.spread(numbers, source.shape)
    with torch.no_grad():
        found, constant = (operation.replay([x])[0] for x in (sources, torch.zeros_like(sources)))
    expected = after.spread(numbers, output.shape)
    return bool(((found == expected) | (found == constant)).all())


def _picks_along_another(operation: Operation, axis: Axis, source: Value) -> bool:
    """Whether indices move entries along one dimension only, and the axis is another one."""
    if operation.name not in ("gather", "take_along_dim", "index_select"):
        return False
    along = operation.argument(1, "dim")
    dim = axis.dim(source.shape)
    return isinstance(along, int) and dim is not None and dim != along % len(source.shape)


def _looked_up(operation: Operation, source: Value, output: Value) -> Axis | None:
    """Where the samples went in an operation that rearranges by indices, as its entries tell."""
    one_to_one = len(operation.traced()) == len(operation.outputs) == 1
    if source.samples is None or not one_to_one or operation.name in _REARRANGED_WHOLE:
        return None
    count, shape = source.samples.size, output.shape
    if shape.numel() < count:
        return None
    numbers = _numbers(operation, count)
    with torch.no_grad():
        (found,) = operation.replay([source.samples.spread(numbers, source.shape)])
    axes = (Axis.of(shape, dim, count) for dim, n in enumerate(shape) if n and n % count == 0)
    return next((axis for axis in axes if torch.equal(axis.spread(numbers, shape), found)), None)


def _numbers(operation: Operation, count: int) -> Tensor:
    """From one on, in a precision that holds them and the operation's own constants."""
    ((operand, _),) = operation.traced()
    dtype = torch.promote_types(operand.dtype, torch.float32)
    return torch.arange(1, count + 1, dtype=dtype, device=operand.device)


def _appends(operation: Operation) -> bool:
    """Whether an operation adds dimensions behind those of its operand."""
    return operation.kind is Kind.EMBEDDING or operation.name == "view_as_real"


def _softmax_axis(operation: Operation, output: Value) -> Axis | None:
    dim = operation.argument(1, "dim")
    return Axis.of(output.shape, dim % len(output.shape)) if isinstance(dim, int) else None


def _carried(
    operation: Operation, source: Operand, axis: Axis, output: Value, view: View | None
) -> Axis | None:
    return _kept(operation, source, axis, output) if view is None else axis.in_view(view)


def _kept(operation: Operation, source: Operand, axis: Axis, output: Value) -> Axis | None:
    before, after = source.size, output.shape
    dim = axis.dim(before)
    if dim is None:
        return _kept_within(operation, before, axis, after)
    contracted = _contracted(operation, source)
    # An axis of length one could be any dimension of length one.
    if any(dim == gone or axis.size == before[gone] == 1 for gone in contracted):
        return None
    moved: int | None = None
    if operation.name == "einsum":
        moved = _through_einsum(operation, source, dim)
        if moved is None:
            return None
    elif operation.name == "stack":
        at = operation.argument(1, "dim", 0) % len(after)
        moved = dim + (at <= dim)
    elif operation.kind in (Kind.SUM, Kind.MEAN):
        gone = _summed(operation, len(before))
        if dim in gone:
            return None
        if len(after) < len(before):
            moved = dim - sum(d < dim for d in gone)
    elif len(after) > len(before) and not _appends(operation):
        moved = dim + len(after) - len(before)
    if moved is not None:
        if moved >= len(after):
            return None
        return Axis.of(after, moved, axis.size) if after[moved] == before[dim] else None
    return axis.kept(before, after)


def _kept_within(
    operation: Operation, before: Sequence[int], axis: Axis, after: Sequence[int]
) -> Axis | None:
    """An axis that was merged into a dimension behind another one, as (tokens x samples)."""
    features = before[-1]
    if operation.kind is Kind.LINEAR and before[:-1] == after[:-1] and axis.inner % features == 0:
        return Axis(axis.outer, axis.size, axis.inner // features * after[-1])
    return None


def sums_over_features(operation: Operation) -> bool:
    """Whether it multiplies two signals and sums over all their features, and nothing else.

    A product that leaves features of one of them hands on its tokens, as linear attention does.
    """
    if operation.kind not in (Kind.MATMUL, Kind.LINEAR) or len(operation.operands) != 2:
        return False
    for operand, value in operation.traced():
        gone = _contracted(operation, operand)
        if {Axis.of(value.shape, dim) for dim in gone} != set(value.features):
            return False
    return len(operation.traced()) == 2


def _with_features(operation: Operation, source: Operand, axis: Axis, output: Value) -> Axis | None:
    """A feature axis after an operation; features may be joined by others, or chosen from."""
    dim = axis.dim(source.size)
    if dim is not None and dim == _chosen_along(operation) and axis.size == source.size[dim]:
        return Axis.of(output.shape, dim)
    if dim is not None and operation.name in _CONCATENATIONS:
        along = operation.argument(1, "dim", 0) % len(source.size)
        if dim == along and axis.size == source.size[dim]:
            return Axis.of(output.shape, dim)
    return _kept(operation, source, axis, output)


def chooses_features(operation: Operation) -> bool:
    """Whether it picks the largest of each token's last features, as of a router's experts."""
    along = _chosen_along(operation)
    if along is None:
        return False
    ((_, value),) = operation.traced()
    return along == len(value.shape) - 1 and Axis.of(value.shape, along) in value.features


def _chosen_along(operation: Operation) -> int | None:
    """The dimension along which an operation picks entries by their size, if it does."""
    if operation.name not in _CHOICES:
        return None
    dim: int = operation.argument(*_CHOICES[operation.name], -1)
    return dim % len(operation.operands[0].size)


def _contracted(operation: Operation, operand: Operand) -> list[int]:
    """The dimensions of an operand that a product sums away."""
    last = len(operand.size) - 1
    if operation.kind is Kind.LINEAR:
        return [last]
    if operation.kind is Kind.CONV:
        return [1]
    if operation.name == "einsum":
        terms, out = _einsum_terms(operation)
        letters = next((letters for o, letters in terms if o is operand), "")
        return [dim for dim, letter in enumerate(letters) if letter not in out]
    if operation.kind is Kind.MATMUL:
        is_left = operation.operands[-2] is operand
        return [last if is_left else max(last - 1, 0)]
    return []


def _summed(operation: Operation, ndim: int) -> set[int]:
    """The dimensions that a sum or mean runs over."""
    dims = operation.kwargs.get("axis", operation.argument(1, "dim"))
    if dims is None or dims == ():
        return set(range(ndim))
    return {dim % ndim for dim in (dims if isinstance(dims, Iterable) else [dims])}


def _einsum_terms(operation: Operation) -> tuple[list[tuple[Operand, str]], str]:
    """Each operand with the letters of its dimensions, and those of the output."""
    equation, *flat = operation.args
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return [], ""
    left, _, out = equation.replace(" ", "").partition("->")
    operands = flat[0] if len(flat) == 1 and isinstance(flat[0], (list, tuple)) else flat
    return list(zip(operands, left.split(","), strict=True)), out


def _through_einsum(operation: Operation, source: Operand, dim: int) -> int | None:
    terms, out = _einsum_terms(operation)
    for operand, letters in terms:
        if operand is source and letters[dim] in out:
            return out.index(letters[dim])
    return None
