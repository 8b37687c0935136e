"""Assigns the maps of an attention call to heads, as far as the trace knows them."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.arrangement import Arrangement, arrangement
from captum_transformer.trace.attention import AttentionCall, ExplicitAttention, FusedAttention
from captum_transformer.trace.axis import Axis, View, pieces_in_view
from captum_transformer.trace.dimensions import image
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Form, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import back_to_scores
from captum_transformer.trace.products import factors_of
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.stacked import whole_of
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of

# What moves tokens, or changes each by itself.
_OF_TOKENS = MOVES | BY_ENTRY | {Kind.PRODUCT}
# An operation, one of its operands, and one of its outputs.
Step = tuple[Operation, Operand, Value]


def by_head(call: AttentionCall, tensor: Tensor) -> Tensor:
    """Rearranges a call's tensor ``(..., X, Y)`` to ``(sets of tokens, heads, X, Y)``.

    A set of tokens is a sample, a window or a frame. Heads are features of the queries.

    Raises:
        UnsupportedOperationError: if a map may hold several samples, or if it is not certain which
            dimensions are heads.
    """
    arranged = _arranged(call)
    return arranged.apart(_with_all(arranged, tensor)).flatten(0, 1)


def from_heads(call: AttentionCall, tensor: Tensor, like: Tensor) -> Tensor:
    """Reverses `by_head`.

    Args:
        call: the attention call.
        tensor: a tensor ``(sets of tokens, heads, X, Y)``.
        like: the tensor of the call that was rearranged, or one with the same first dimensions.
    """
    arranged = _arranged(call)
    lead = _with_all(arranged, like).shape[:-2]
    made = arranged.together(tensor.unsqueeze(1), lead)
    return made.reshape(*like.shape[:-2], *tensor.shape[2:])


def _with_all(arranged: Arrangement, tensor: Tensor) -> Tensor:
    """Returns a call's tensor with the first dimensions that it lacks, of size one."""
    return tensor[(None,) * (len(arranged.shape) + 2 - tensor.dim())]


def _arranged(call: AttentionCall) -> Arrangement:
    """Returns which of the dimensions before the last two are samples, and which are heads."""
    value = call.output
    laid_out = View.of(call.outputs(torch.empty(value.shape, device="meta")))
    lead = laid_out.shape[:-2]
    if value.samples is None or not all(d < len(lead) for d in _along(value.samples, laid_out)):
        raise _unsupported(
            call,
            "its rows may be of several samples, as where samples are packed into one sequence",
        )
    if value.features is None and not value.learned:
        raise _unsupported(call, "it is not known which features its heads are")
    samples, found = _in_lead(value.samples, laid_out), None
    if samples is not None and len(samples) <= 1:
        # Learned queries have no windows.
        heads = _others(samples, lead) if value.learned else _heads(call, laid_out)
        found = None if heads is None else arrangement(lead, samples, heads)
    # What lies behind heads may be queries, each with keys of its own, if tokens are repeated.
    if found is None or (found.has_rest_behind_features and not _has_each_once(call.value.value)):
        raise _unsupported(call, "which of its maps are heads is not known")
    return found


def require_sets_apart(call: AttentionCall) -> None:
    """Checks that no two sets of tokens in a sample attend to the same token.

    Otherwise they are parts of one map, as are windows of neighbours, one for each query.

    Raises:
        UnsupportedOperationError: if they may do so.
    """
    if _arranged(call).counts[1] > 1 and not _has_each_once(call.value.value):
        raise UnsupportedOperationError(
            f"Attention call {call.layer} ({call.module}) has several maps for each sample, of "
            f"shape {call.map_shape()}, and a key may be in more than one of them, as in windows "
            "of neighbours. These are parts of one map, which is not known as a whole. Choose "
            "another `layer` or method, or write this attention as one map with a mask."
        )


def _has_each_once(value: Value | None) -> bool:
    """Whether a value certainly holds no token of its set twice, as neighbouring windows may."""
    projected = False
    while value is not None and (operation := value.operation) is not None:
        traced = operation.traced()
        if len(traced) != 1 or operation.attention or operation.kind not in _OF_TOKENS:
            # Tokens that are joined with others before a projection make sets of their own.
            return projected or operation.kind not in MOVES
        projected = projected or operation.kind is Kind.PRODUCT
        ((operand, source),) = traced
        if operation.kind in MOVES and not _moves_each_once(operation, value):
            return False
        if operation.kind in BY_ENTRY and operand.size != value.shape:
            return False
        value = source
    return value is not None


def _moves_each_once(operation: Operation, output: Value) -> bool:
    if operation.kind is Kind.PAD:
        return operation.argument("mode") in (None, "constant")
    view = view_of(operation, output)
    return operation.form is Form.ORDERS or (view is not None and view.shows_each_once())


def _heads(call: AttentionCall, laid_out: View) -> tuple[Axis, ...] | None:
    """Returns where heads lie in the first dimensions of a call, or None if that is unknown."""
    ways = _steps_from_queries(call)
    starts = [_held(way[0][1]) for way in ways]
    if any(start is not None and start.features is None for start in starts):
        # What attention shows of the features within a head doesn't show which the heads are.
        return None
    merged = [heads_merged_by(steps) for steps in ways]
    found = _all_in_lead([call.output.features, *merged], laid_out)
    if found == ():
        # The trace doesn't follow learned queries, but it follows the values that they attend to.
        found = _all_in_lead([heads_merged_by(_steps_from_values(call))], laid_out)
    return found


def _all_in_lead(parts: Iterable[Iterable[Axis] | None], laid_out: View) -> tuple[Axis, ...] | None:
    """Returns all axes of a call's first dimensions, or None if one is unknown."""
    found = list[Axis]()
    for axes in parts:
        for axis in axes or ():
            places = _in_lead(axis, laid_out)
            if places is None:
                return None
            found += places
        if axes is None:
            return None
    return tuple(found)


def _others(samples: Sequence[Axis], lead: Sequence[int]) -> tuple[Axis, ...]:
    """Returns the axes that dimensions have besides the axis of samples."""
    if not samples:
        return (Axis(1, math.prod(lead), 1),)
    ((outer, size, inner),) = samples
    return Axis(1, outer, size * inner), Axis(outer * size, inner, 1)


def _in_lead(axis: Axis, laid_out: View) -> tuple[Axis, ...] | None:
    """Returns the axes of a call's first dimensions that an axis of its output consists of.

    Returns None if the axis may run along the queries, or if it was cut up.
    """
    queries, width = laid_out.shape[-2:]
    whole = axis.in_view(laid_out)
    places = pieces_in_view((axis,), laid_out) if whole is None else (whole,)
    if math.prod(place.size for place in places) != axis.size:
        return None
    outside = [place for place in places if place.size > 1 and place.inner * place.size > width]
    if any(place.inner % (queries * width) for place in outside):
        return None
    return tuple(Axis(p.outer, p.size, p.inner // (queries * width)) for p in outside)


def heads_merged_by(steps: Iterable[Step]) -> list[Axis] | None:
    """Returns where heads lie that share a dimension with something else, such as with samples.

    Args:
        steps: operations, the first one first, each with the operand that leads to the next one.

    Returns:
        Axes of the last output; None if it is unknown where heads are.
    """
    heads = list[Axis]()
    for operation, operand, output in steps:
        source, view = _held(operand), view_of(operation, output)
        kept = [image(operation, operand, axis, output, view) for axis in heads]
        merged = [] if source is None or view is None else _merged(source, view)
        if None in (*kept, *merged) or _joins_parts(operation, output):
            return None
        heads = [axis for axis in (*kept, *merged) if axis is not None]
    return heads


def _merged(source: Value, view: View) -> list[Axis | None]:
    """Returns the parts of a view's dimensions that features share with samples.

    A part is None if something else may be in the dimension, such as windows or experts.
    """
    features, samples = tuple(source.features or ()), source.samples
    if source.shape.numel() != view.numel():
        return []
    pieces, found = pieces_in_view(features, view), list[Axis | None]()
    for axis in features:
        for dim in _along(axis, view):
            if Axis.of(view.shape, dim) in pieces:
                continue
            part = _part(axis, view, dim)
            if part is None or samples is None or dim not in _along(samples, view):
                return [None]
            found.append(part if view.shape[dim] == part.size * samples.size else None)
    return found


def _part(axis: Axis, view: View, dim: int) -> Axis | None:
    """Returns the part of a view's dimension that runs along an axis of what it is a view of."""
    step, end = view.stride[dim], view.stride[dim] * view.shape[dim]
    low, high = max(step, axis.inner), min(end, axis.inner * axis.size)
    if low % step or high % low or end % high:
        return None
    size, inner = high // low, low // step * math.prod(view.shape[dim + 1 :])
    return Axis(view.numel() // (size * inner), size, inner)


def _steps_from_queries(call: AttentionCall) -> list[list[Step]]:
    """Returns the steps from the queries of a call to its output, in a list.

    If it is unknown which factor of the scores the queries are, the list has the steps from each.
    """
    operation, output = call.operation, call.output
    if isinstance(call, FusedAttention):
        return [[*steps_to(_held(call.query)), (operation, call.query, output)]]
    if not isinstance(call, ExplicitAttention):
        return []
    after: list[Step] = [(operation, call.weights, output)]
    made = back_to_scores(call.weights.value)
    if not made:
        return [[*steps_to(call.weights.value), *after]]
    for (step, result), (_, source) in pairwise(made):
        after.append((step, next(o for o, v in step.carried() if v is source), result))
    scores, result = made[-1]
    factors = [factor for factor, _ in factors_of(scores, result) or []]
    if not all(factor in scores.operands for factor in factors):  # the sum of a product of entries
        factors = [operand for operand, _ in scores.carried()]
    ways = [[*steps_to(_held(factor)), (scores, factor, result)] for factor in factors]
    queries = query_value(call)
    known = [way for way in ways if any(queries is _held(operand) for _, operand, _ in way)]
    return [[*way, *reversed(after)] for way in known or ways]


def _steps_from_values(call: AttentionCall) -> list[Step]:
    """Returns the steps from the values of a call to its output."""
    return [*steps_to(call.value.value), (call.operation, call.value, call.output)]


def steps_to(value: Value | None) -> list[Step]:
    """Returns the steps that move entries, or change each by itself, on the way to a value."""
    steps = list[Step]()
    while value is not None and (operation := value.operation) is not None:
        carried = operation.traced()
        if operation.kind not in MOVES | BY_ENTRY or operation.attention or not carried:
            break
        steps.append((operation, carried[0][0], value))
        value = carried[0][1]
    return steps[::-1]


def _held(operand: Operand) -> Value | None:
    return operand.value or operand.tokens


def _joins_parts(operation: Operation, output: Value) -> bool:
    """Whether parts of one value's features were joined in front of them, as in ``cat(chunks, 0)``.

    With a single sample, only this distinguishes such heads from windows.
    """
    traced = operation.traced()
    if operation.kind is not Kind.CONCATENATE or len(traced) < 2:
        return False
    wholes = {whole_of(source) for _, source in traced}
    dim = operation.dim(len(output.shape)) or 0
    own = [axis.dim(output.shape) for axis in output.features or ()]
    return None not in wholes and len(wholes) == 1 and all(d is None or dim < d for d in own)


def _along(axis: Axis, view: View) -> list[int]:
    """Returns the dimensions of a view of a contiguous tensor that run along an axis."""
    end = axis.inner * axis.size
    return [
        dim
        for dim, (length, stride) in enumerate(zip(view.shape, view.stride, strict=True))
        if axis.size > 1 and length > 1 and stride < end and stride * length > axis.inner
    ]


def _unsupported(call: AttentionCall, why: str) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"The heads of attention call {call.layer} ({call.module}), with maps of shape "
        f"{call.map_shape()}, can't be separated from other dimensions: {why}. Ask for the "
        "relevance of inputs or tokens by a method that doesn't need heads, such as "
        "GenericAttentionRelevance with `propagation='flow'`, or choose another `layer`."
    )
