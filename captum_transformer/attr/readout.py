"""What each pooled token that a score is read from says for the class."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_transformer.attr.attention_flow_method import Selection
from captum_transformer.attr.transformer_method import START, scaled_back, seed
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.ledger import added_up, total
from captum_transformer.rules.propagate import transposed
from captum_transformer.trace.numeric import accumulation_dtype, quotient
from captum_transformer.trace.operation import Operation, Value
from captum_transformer.trace.pooling import read_from

# How many units in the last place a sum over tokens may be off.
_ROUNDING = 64


def with_evidence(relevance: dict[Value, Tensor], selection: Selection) -> dict[Value, Tensor]:
    """Adds to what has passed attention as much of what each pooled token says by itself.

    Args:
        relevance: what has passed attention, at the wanted values.
        selection: what is explained.
    """
    pooling = read_from(selection.history.operations, selection.history.calls)
    if not pooling:
        return relevance
    flow = TokenFlow(selection.forward.tape, {})
    evidence = _evidence(selection, pooling, flow)
    own = scaled_back(flow({v: e * START for v, e in evidence.items()}, list(relevance)))
    speaking = added_up([total(value, each.clamp_min(0)) for value, each in evidence.items()])
    passed = added_up([total(value, each) for value, each in relevance.items()])
    scale = quotient(passed, speaking)
    return {
        value: each + own[value] * _for_each_sample(value, scale)
        for value, each in relevance.items()
    }


def _evidence(
    selection: Selection, pooling: Sequence[Operation], flow: TokenFlow
) -> dict[Value, Tensor]:
    """Value times gradient of each pooled token, less its part of the sum over all of them.

    So the sum is zero, and of a token that the score is read from alone nothing is left.
    """
    values = [value for operation in pooling for _, value in operation.traced()]
    parts = flow(seed(selection.selected, selection.value), values)
    edges = [operation.edge for operation in pooling if operation.edge is not None]
    slopes = selection.forward.gradients(selection.selected, edges)
    evidence: dict[Value, Tensor] = {}
    for operation, value, slope in zip(pooling, values, slopes, strict=True):
        if slope is None or value.samples is None:
            continue
        ((operand, _),) = operation.traced()
        dtype = accumulation_dtype(slope.dtype)
        data, beside = operand.tensor.to(dtype), [None] * (len(operation.outputs) - 1)
        (back,) = transposed(operation, [data], [slope.to(dtype), *beside])
        if back is None:
            continue
        said, part = _of_tokens(value, data * back), _of_tokens(value, parts[value])
        read = value.samples.total(part)
        mean = quotient(value.samples.total(said), read)
        own = said - part * value.samples.spread(mean, value.shape)
        # Where one token is read, or all say the same, what is left is rounding, not evidence.
        size = value.samples.total(said.abs()) * _ROUNDING * torch.finfo(dtype).eps
        nothing = own.abs() * _width(value) <= value.samples.spread(size, value.shape)
        own = own.masked_fill(nothing | ~value.samples.spread(read != 0, value.shape), 0.0)
        evidence[value] = evidence[value] + own if value in evidence else own
    return evidence


def _of_tokens(value: Value, tensor: Tensor) -> Tensor:
    """The sum over each token's features, spread evenly over them."""
    dims = [axis.dim(value.shape) for axis in value.features or ()]
    known = [dim for dim in dims if dim is not None]
    return (tensor.sum(known, keepdim=True) / _width(value)).expand(value.shape)


def _width(value: Value) -> int:
    return math.prod(axis.size for axis in value.features or ())


def _for_each_sample(value: Value, scale: Tensor) -> Tensor:
    """One number for each sample over a value; one for all where they can't be told apart."""
    if not scale.ndim or value.samples is None:
        return scale
    return value.samples.spread(scale, value.shape)
