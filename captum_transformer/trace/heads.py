"""Assigns the maps of an attention call to heads, as far as the trace knows them."""

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.axis import Axis, View, pieces_in_view
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.stacked import whole_of
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import views_of


def by_head(call: AttentionCall, tensor: Tensor) -> Tensor:
    """Reshapes a call's tensor ``(..., X, Y)`` to ``(sets of tokens, heads, X, Y)``.

    A set of tokens is a sample, a window or a frame. Heads are features of the queries.

    Raises:
        UnsupportedOperationError: if a map may hold several samples, or if it is not certain which
            dimensions are heads.
    """
    return tensor.reshape(-1, _heads(call), *tensor.shape[-2:])


def _heads(call: AttentionCall) -> int:
    value = call.output
    laid_out = View.of(call.outputs(torch.empty(value.shape, device="meta")))
    lead = len(laid_out.shape) - 2
    samples = value.samples
    if samples is None or not all(dim < lead for dim in _along(samples, laid_out)):
        raise _unsupported(
            call,
            "its rows may be of several samples, as where samples are packed into one sequence",
        )
    if value.learned and samples.outer == 1:  # learned queries have no windows
        return torch.Size(laid_out.shape[:lead]).numel() // samples.size
    sources = query_value(call), call.value.value
    features = value.features
    if features is None:
        raise _unsupported(call, "it is not known which features its heads are")
    dims = {dim for axis in features for dim in _along(axis, laid_out)}
    own = sorted(dim for dim in dims if dim < lead)
    heads = torch.Size(laid_out.shape[dim] for dim in own).numel()
    in_order = own == list(range(lead - len(own), lead))
    # The trace doesn't follow learned queries, but it follows the values that they attend to.
    beside: int | None = 1
    for source in () if own else sources:
        beside = heads_beside_samples(source) if beside == 1 else beside
    first = max(_along(samples, laid_out), default=-1) < own[0] if own else samples.outer == 1
    known = first and in_order and lead not in dims and not any(map(_joins_parts, sources))
    if not known or beside is None:
        raise _unsupported(call, "which of its maps are heads is not known")
    return heads * beside


def heads_beside_samples(value: Value | None) -> int | None:
    """Returns how many heads share a dimension with the samples, or None if others share it too."""
    heads = 1
    operation = None if value is None else value.operation
    while value is not None and operation is not None and operation.attention is None:
        traced = operation.traced()
        if operation.kind not in MOVES | BY_ENTRY or not traced:
            break
        source, views = traced[0][1], views_of(operation)
        if views is not None and source.features and source.shape.numel() == value.shape.numel():
            view = views[operation.outputs.index(value)]
            pieces = pieces_in_view(tuple(source.features), view)
            samples = 1 if source.samples is None else source.samples.size
            for axis in source.features:
                dims = _along(axis, view)
                lost = [dim for dim in dims if Axis.of(view.shape, dim) not in pieces]
                size = axis.size // torch.Size(view.shape[d] for d in dims if d not in lost).numel()
                if lost:
                    # The dimension must hold only samples and features.
                    if [view.shape[dim] for dim in lost] != [size * samples]:
                        return None
                    heads *= size
        value, operation = source, source.operation
    return heads


def _joins_parts(value: Value | None) -> bool:
    """Whether parts of one value's features were joined in front of them, as in ``cat(chunks, 0)``.

    With a single sample, only this distinguishes such heads from windows.
    """
    operation = None if value is None else value.operation
    while value is not None and operation is not None and operation.attention is None:
        traced = operation.traced()
        if operation.kind not in MOVES | BY_ENTRY or not traced:
            break
        if operation.kind in (Kind.CONCATENATE, Kind.STACK) and len(traced) > 1:
            wholes = {whole_of(source) for _, source in traced}
            dim = operation.dim(len(value.shape)) or 0
            own = [axis.dim(value.shape) for axis in value.features or ()]
            if None not in wholes and len(wholes) == 1 and all(d is None or dim < d for d in own):
                return True
        value, operation = traced[0][1], traced[0][1].operation
    return False


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
