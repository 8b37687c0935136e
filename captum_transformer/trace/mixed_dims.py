"""Along which dimensions of an operand an operation makes one entry of several."""

import re
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any

import torch

from captum_transformer.trace.dimensions import moved_by_brackets
from captum_transformer.trace.kinds import CONVOLUTIONS, ENTRIES_ALONE, Kind
from captum_transformer.trace.operation import Operand, Operation

Dims = Iterable[int]
# Of two tensors they take, entry by entry, one or both.
_OF_TWO = frozenset({"maximum", "minimum", "fmax", "fmin", "logaddexp", "logaddexp2"})
# Rearrangements that leave entries at their place, or put other ones there.
_AT_PLACE = frozenset({"where", "masked_fill", "tril", "triu", "copy", "fill", "zero"})
# These move entries along the dimension that they are told.
_ALONG = frozenset(
    {"gather", "index_select", "take_along_dim", "index_copy", "index_fill", "scatter"}
)
# What works along some dimension if it is told none; everything else works along all of them.
_DEFAULT_DIM: dict[str, Any] = {
    **dict.fromkeys(("topk", "sort", "mode", "kthvalue", "pairwise_distance"), -1),
    **dict.fromkeys(("msort", "cat", "concat", "concatenate"), 0),
    "linalg_matrix_norm": (-2, -1),
}


def mixed_dims(operation: Operation, operand: Operand) -> tuple[int, ...]:
    """The dimensions of an operand along which an operation makes one entry of several.

    Along the others each entry of the output is made of entries at its own place. Where that is
    not known, or entries move from place to place, these are all of them.

    >>> import torch
    >>> from captum_transformer.trace.mode import Trace
    >>> x = torch.randn(2, 3, 4, requires_grad=True)
    >>> with Trace() as trace:
    ...     value = trace.enter_input(x)
    ...     out = x.clone().softmax(-1)
    >>> softmax = trace.tape.operations[-1]
    >>> mixed_dims(softmax, softmax.operands[0])
    (2,)
    """
    ndim = len(operand.size)
    find = _FINDERS.get(operation.kind)
    if find is None:
        return () if operation.kind in ENTRIES_ALONE else tuple(range(ndim))
    return tuple(sorted({dim % ndim for dim in find(operation, operand, ndim)}))


def _named(operation: Operation, _: Operand, ndim: int) -> Dims:
    """Those that the operation is told to work along."""
    every = range(ndim)
    dims = operation.argument("dim", _DEFAULT_DIM.get(operation.name))
    if isinstance(dims, Operand):  # as in `torch.max(x, y)`
        return ()
    if dims is None or isinstance(dims, bool) or (not isinstance(dims, int) and not len(dims)):
        return every
    return (dims,) if isinstance(dims, int) else dims


def _normalised(operation: Operation, _: Operand, ndim: int) -> Dims:
    shape = operation.argument("normalized_shape")
    if shape is not None:
        return range(ndim - (1 if isinstance(shape, int) else len(shape)), ndim)
    if operation.name == "batch_norm":
        return (0, *range(2, ndim)) if operation.argument("training") else ()
    if operation.name == "instance_norm":
        return range(2, ndim) if operation.argument("use_input_stats", default=True) else ()
    return range(1, ndim) if operation.name == "group_norm" else range(ndim)


def _pooled(operation: Operation, _: Operand, ndim: int) -> Dims:
    if operation.name == "cumsum":
        return _named(operation, _, ndim)
    if operation.name in ("fold", "col2im"):
        return (-2, -1)
    if "interpolate" in operation.name or "upsample" in operation.name:
        return range(2, ndim)
    if "pool" not in operation.name:
        return range(ndim)
    found = re.search(r"([123])d", operation.name)
    return range(max(ndim - int(found[1] if found else 3), 0), ndim)


def _largest(operation: Operation, _: Operand, ndim: int) -> Dims:
    if operation.name in _OF_TWO or isinstance(operation.argument("other"), Operand):
        return ()
    pools = "pool" in operation.name
    return _pooled(operation, _, ndim) if pools else _named(operation, _, ndim)


def _summed(operation: Operation, operand: Operand, ndim: int) -> Dims:
    product = operation.contraction()
    if product is None:
        return range(ndim)
    return product.summed(operand) if product.of(operand) else ()


def _convolved(operation: Operation, operand: Operand, ndim: int) -> Dims:
    batched = ndim == len(operation.argument("weight").size)
    return range(1, ndim) if batched and operand is operation.argument("input") else range(ndim)


def _attended(operation: Operation, operand: Operand, ndim: int) -> Dims:
    of_argument = {"query": (-1,), "key": (-2, -1), "value": (-2,), "attn_mask": (-1,)}
    for name, dims in of_argument.items():
        if operand is operation.argument(name):
            return dims
    return range(ndim)


def _transformed(operation: Operation, operand: Operand, ndim: int) -> Dims:
    if operation.argument("dim") is not None:
        return _named(operation, operand, ndim)
    if operation.name.endswith("n"):
        return range(ndim)
    return (-2, -1) if operation.name.endswith("2") else (-1,)


def _padded(operation: Operation, _: Operand, __: int) -> Dims:
    pad = operation.argument("pad")
    return [-1 - place // 2 for place, length in enumerate(pad) if length]


def _moved(operation: Operation, operand: Operand, ndim: int) -> Dims:
    if operation.name in _ALONG:
        return _named(operation, operand, ndim)
    if operation.argument("brackets") is not None:
        moved = [moved_by_brackets(operation, operand.size, dim) for dim in range(ndim)]
        return [dim for dim, place in enumerate(moved) if place is None]
    return () if operation.name in _AT_PLACE else range(ndim)


def lookup_place(operation: Operation, ids: Operand) -> int | None:
    """How many dimensions a lookup's output has before those of the ids; None if unknown."""
    index = operation.argument("brackets", operation.argument("index"))
    if index is ids:
        whole = operation.name in ("gather", "take_along_dim", "take")
        ahead = 0 if whole else operation.argument("dim", 0)
        return ahead if isinstance(ahead, int) and ahead >= 0 else None
    if not isinstance(index, tuple) or not all(
        isinstance(i, (Operand, slice, NoneType)) for i in index
    ):
        return None
    # Tensors side by side pick together, in the place of the first.
    picks = [place for place, part in enumerate(index) if isinstance(part, Operand)]
    if picks[-1] - picks[0] >= len(picks) or any(index[p].dtype == torch.bool for p in picks):
        return None
    ndim = max(len(index[place].size) for place in picks)
    return picks[0] + ndim - len(ids.size)


def _looked_up(operation: Operation, operand: Operand, ndim: int) -> Dims:
    return range(ndim) if lookup_place(operation, operand) is None else ()


def _measured(operation: Operation, operand: Operand, ndim: int) -> Dims:
    if operation.name == "cdist":
        # Rows of the second become columns.
        return (-1,) if operand is operation.argument("input") else range(ndim)
    return _named(operation, operand, ndim)


_Find = Callable[[Operation, Operand, int], Dims]
_FINDERS: dict[Kind, _Find] = {
    **dict.fromkeys((Kind.SUM, Kind.MEAN, Kind.DERIVED, Kind.CHOICE, Kind.CONCATENATE), _named),
    **dict.fromkeys((Kind.SOFTMAX, Kind.LOG_SOFTMAX, Kind.SUM_AT_INDICES), _named),
    **dict.fromkeys((Kind.MAXIMUM, Kind.SMOOTH_MAXIMUM), _largest),
    **dict.fromkeys(CONVOLUTIONS, _convolved),
    Kind.DISTANCE: _measured,
    Kind.POOL: _pooled,
    Kind.NORM: _normalised,
    Kind.PRODUCT: _summed,
    Kind.ATTENTION: _attended,
    Kind.TRANSFORM: _transformed,
    Kind.SAMPLE: lambda _, __, ndim: range(1, ndim),
    Kind.SOLVE: lambda _, __, ___: (-2, -1),
    Kind.PAD: _padded,
    Kind.MOVE: _moved,
    Kind.EMBEDDING: _looked_up,
    Kind.STACK: lambda _, __, ___: (),
    Kind.AS_COMPLEX: lambda _, __, ___: (-1,),
    Kind.AS_REAL: lambda _, __, ___: (),
}
