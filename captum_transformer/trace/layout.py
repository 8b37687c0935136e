"""How the axes of a traced value follow from those of the operands of its operation."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from captum_transformer.trace.axis import Axis, View, pieces_in_view
from captum_transformer.trace.indices import moved_dims
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, MOVES, Kind, Role
from captum_transformer.trace.lookups import features_begin
from captum_transformer.trace.nested import mapped
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.statistics import softmax_dim
from captum_transformer.trace.views import views_of

_NEW_FEATURES = CONVOLUTIONS | {Kind.EMBEDDING}
_MAY_BE_SOFTMAX = frozenset({Kind.SOFTMAX, Kind.DIV, Kind.MUL, Kind.ENTRYWISE})
_ALWAYS_REDUCES = frozenset({Kind.SUM, Kind.MEAN})
_MAY_REDUCE = frozenset(
    {Kind.MAXIMUM, Kind.SMOOTH_MAXIMUM, Kind.CHOICE, Kind.DISTANCE, Kind.DERIVED}
)


def lay_out(operation: Operation) -> None:
    """Fills in the axes and the origin of an operation's outputs."""
    traced = operation.traced()
    mixtures = _mixtures(operation, traced)
    views = views_of(operation) if operation.kind in MOVES else None
    for place, output in enumerate(operation.outputs):
        if output is not None:
            _carry(operation, output, None if views is None else views[place])
            output.mixtures = mixtures
    first = operation.outputs[0]
    if first is None:
        return
    if operation.kind is Kind.EMBEDDING:
        begin = features_begin(operation)
        dims = range(len(first.shape) if begin is None else begin, len(first.shape))
        first.features = tuple(Axis.of(first.shape, dim) for dim in dims)
    elif operation.kind in CONVOLUTIONS:
        first.features = (Axis.of(first.shape, 1),)
    elif is_linear_layer(operation):
        first.features = _new_features(operation, first)
    elif operation.kind in _MAY_BE_SOFTMAX and (along := softmax_dim(operation)) is not None:
        first.keys = Axis.of(first.shape, along)
    if len(operation.outputs) == len(traced) == 1 and _keeps_all(operation, first, views):
        first.origin = traced[0][1].origin


def _keeps_all(operation: Operation, output: Value, views: tuple[View, ...] | None) -> bool:
    """Whether an operation keeps all entries of its operand, each once."""
    ((_, value),) = operation.traced()
    if operation.kind is Kind.COPY or views is None:
        return operation.kind is Kind.COPY
    return output.shape.numel() == value.shape.numel() and views[0].order() is not None


def is_linear_layer(operation: Operation) -> bool:
    """Whether it multiplies each token's features with the same constants.

    Constants that differ from sample to sample or from token to token, such as learned queries
    that have been repeated, are no weights of a layer.
    """
    product, traced = operation.contraction(), operation.traced()
    if product is None or len(traced) != 1:
        return False
    ((operand, value),) = traced
    summed = product.summed(operand)
    if any(factor.role is Role.WEIGHT for factor in product.factors):
        return True
    others = "".join(product.of(factor) for factor in product.factors if factor is not operand)
    shared = [dim for dim, letter in enumerate(product.of(operand)) if letter in others]
    return bool(summed) and shared == summed and mixes_features(value, summed)


def _new_features(operation: Operation, output: Value) -> tuple[Axis, ...]:
    """The dimensions that come from the weights of a linear layer."""
    product, ((operand, _),) = operation.contraction(), operation.traced()
    if product is None:
        return ()
    new = [dim for dim, letter in enumerate(product.output) if letter not in product.of(operand)]
    return tuple(Axis.of(output.shape, dim) for dim in new)


def mixes_features(value: Value, summed: Sequence[int]) -> bool:
    """Whether dimensions that a product sums over are features of each token by itself."""
    features = {axis.dim(value.shape) for axis in value.features}
    return set(summed) <= features


def _mixtures(operation: Operation, traced: list[tuple[Operand, Value]]) -> int:
    """What mixes tokens in the operation's history, before it is known whether it is attention."""
    mixtures = 0
    for _, value in traced:
        mixtures |= value.mixtures
    mixes = operation.kind is Kind.TRANSFORM
    if len(traced) > 1 and operation.kind is Kind.PRODUCT:
        mixes = True
    elif len(traced) > 1 and operation.kind is Kind.MUL:
        mixes = len({value.weighs_tokens for _, value in traced}) > 1
    return mixtures | 1 << operation.index if mixes else mixtures


def _carry(operation: Operation, output: Value, view: View | None) -> None:
    by_entry = operation.kind in BY_ENTRY and len(operation.outputs) == 1
    for operand, source in operation.traced():
        if by_entry and source.shape == output.shape:
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
        if output.samples is None and operation.kind in MOVES:
            output.samples = _looked_up(operation, source, output)
    if output.keys is None and keys is not None:
        # Without some of the keys, such as an attention sink, they are probabilities still.
        kept_keys = None if view is None else keys.part_in_view(view)
        output.keys = kept_keys or _carried(operation, operand, keys, output, view)
    # What attends has a head's features of its values, and the heads of its probabilities.
    both = operation.kind is Kind.PRODUCT
    if (output.features and not both) or operation.kind in _NEW_FEATURES:
        return
    if view is not None:
        output.features = pieces_in_view(source.features, view)
    else:
        kept = [_with_features(operation, operand, axis, output) for axis in source.features]
        found = (axis for axis in kept if axis is not None)
        output.features = tuple(dict.fromkeys((*output.features, *found)))


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
    moves = operation.kind in MOVES or operation.kind is Kind.SUM_AT_INDICES
    by_index = moves and any(operand.role is Role.INDEX for operand in operation.operands)
    one_to_one = len(operation.traced()) == len(operation.outputs) == 1
    if not by_index or not one_to_one or _picks_along_another(operation, before, source):
        return True
    numbers = _numbers(operation, before.size)
    sources = before.spread(numbers, source.shape).contiguous()
    with torch.no_grad():
        found, constant = (operation.replay([x])[0] for x in (sources, torch.zeros_like(sources)))
    expected = after.spread(numbers, output.shape)
    return bool(((found == expected) | (found == constant)).all())


def _picks_along_another(operation: Operation, axis: Axis, source: Value) -> bool:
    """Whether indices move entries along other dimensions only."""
    dim = axis.dim(source.shape)
    if operation.kind is not Kind.MOVE or dim is None:
        return False
    if operation.argument("brackets") is not None:
        return _moved_by_brackets(operation, source.shape, dim) is not None
    along = operation.dim(len(source.shape))
    return along is not None and dim != along


def _looked_up(operation: Operation, source: Value, output: Value) -> Axis | None:
    """Where the samples went in an operation that rearranges by indices, as its entries tell."""
    one_to_one = len(operation.traced()) == len(operation.outputs) == 1
    if source.samples is None or not one_to_one or views_of(operation) is not None:
        return None
    count, shape = source.samples.size, output.shape
    if shape.numel() < count:
        return None
    numbers = _numbers(operation, count)
    with torch.no_grad():
        (found,) = operation.replay([source.samples.spread(numbers, source.shape).contiguous()])
    axes = (Axis.of(shape, dim, count) for dim, n in enumerate(shape) if n and n % count == 0)
    return next((axis for axis in axes if torch.equal(axis.spread(numbers, shape), found)), None)


def _numbers(operation: Operation, count: int) -> Tensor:
    """From one on, in a precision that holds them and the operation's own constants."""
    ((operand, _),) = operation.traced()
    dtype = torch.promote_types(operand.dtype, torch.float32)
    return torch.arange(1, count + 1, dtype=dtype, device=operand.device)


def _appends(operation: Operation) -> bool:
    """Whether an operation adds dimensions behind those of its operand."""
    return operation.kind is Kind.AS_REAL


def _carried(
    operation: Operation, source: Operand, axis: Axis, output: Value, view: View | None
) -> Axis | None:
    return _kept(operation, source, axis, output) if view is None else axis.in_view(view)


def _kept(operation: Operation, source: Operand, axis: Axis, output: Value) -> Axis | None:
    before, after = source.size, output.shape
    dim = axis.dim(before)
    if dim is None:
        return _kept_within(operation, before, axis, after)
    product = operation.contraction()
    contracted = [1] if operation.kind in CONVOLUTIONS else []
    if product is not None:
        contracted = product.summed(source)
    # An axis of length one could be any dimension of length one.
    if any(dim == gone or axis.size == before[gone] == 1 for gone in contracted):
        return None
    moved: int | None = None
    if operation.kind is Kind.EMBEDDING:
        return None if features_begin(operation) is None else axis.kept(before, after)
    if operation.argument("brackets") is not None:
        moved = _moved_by_brackets(operation, before, dim)
        if moved is None:
            return None
    elif product is not None:
        moved = product.moved(source, dim) if product.of(source) else None
        if moved is None:
            return axis.kept(before, after) if source is product.addend else None
    elif operation.kind is Kind.STACK:
        at = operation.dim(len(after), 0) or 0
        moved = dim + (at <= dim)
    elif _reduces(operation, before, after):
        gone = _reduced(operation, len(before))
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


def _moved_by_brackets(operation: Operation, before: Sequence[int], dim: int) -> int | None:
    """Where ``tensor[brackets]`` leaves a dimension; None if it picks along it."""

    def shaped(operand: Operand) -> Tensor:
        return torch.empty(operand.size, dtype=operand.dtype, device="meta")

    brackets = mapped(shaped, Operand, operation.argument("brackets"))
    return moved_dims(brackets, len(before))[dim]


def _kept_within(
    operation: Operation, before: Sequence[int], axis: Axis, after: Sequence[int]
) -> Axis | None:
    """An axis that was merged into a dimension behind another one, as (tokens x samples)."""
    features = before[-1]
    rows = operation.kind is Kind.PRODUCT and before[:-1] == after[:-1]
    if rows and axis.inner % features == 0:
        return Axis(axis.outer, axis.size, axis.inner // features * after[-1])
    return None


def sums_over_features(operation: Operation) -> bool:
    """Whether it multiplies two signals and sums over all their features, and nothing else.

    A product that leaves features of one of them hands on its tokens, as linear attention does.
    """
    product = operation.contraction()
    if product is None or len(product.factors) != 2 or len(operation.traced()) != 2:
        return False
    for operand, value in operation.traced():
        gone = product.summed(operand)
        if {Axis.of(value.shape, dim) for dim in gone} != set(value.features):
            return False
    return True


def _with_features(operation: Operation, source: Operand, axis: Axis, output: Value) -> Axis | None:
    """A feature axis after an operation; features may be joined by others, or chosen from."""
    dim = axis.dim(source.size)
    same = len(source.size) == len(output.shape)
    chosen = same and dim is not None and dim == _chosen_along(operation)
    if dim is not None and chosen and axis.size == source.size[dim]:
        return Axis.of(output.shape, dim)
    joined = operation.kind is Kind.CONCATENATE and dim == operation.dim(len(source.size), 0)
    if dim is not None and joined and axis.size == source.size[dim]:
        return Axis.of(output.shape, dim)
    return _kept(operation, source, axis, output)


def chooses_features(operation: Operation) -> bool:
    """Whether it picks the largest of each token's last features, as of a router's experts."""
    along = _chosen_along(operation)
    if along is None:
        return False
    ((_, value),) = operation.traced()
    output = operation.outputs[0]
    if output is None or len(output.shape) < len(value.shape):
        return False
    return along == len(value.shape) - 1 and Axis.of(value.shape, along) in value.features


def _chosen_along(operation: Operation) -> int | None:
    """The dimension along which an operation picks entries by their size, if it does."""
    if operation.kind is not Kind.CHOICE:
        return None
    return operation.dim(len(operation.operands[0].size), -1)


def _reduces(operation: Operation, before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether dimensions go, or are of length one afterwards."""
    if operation.kind not in _MAY_REDUCE:
        return operation.kind in _ALWAYS_REDUCES
    return len(after) < len(before) or bool(operation.argument("keepdim"))


def _reduced(operation: Operation, ndim: int) -> set[int]:
    """The dimensions that go."""
    dims = operation.argument("dim", -1 if operation.kind is Kind.CHOICE else None)
    if dims is None or dims == ():
        return set(range(ndim))
    return {dim % ndim for dim in (dims if isinstance(dims, Iterable) else [dims])}
