"""What each pooled token that a score is read from says for the class."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_transformer.attr.attention_flow_method import Selection
from captum_transformer.attr.transformer_method import seed
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.ledger import Ledger, total
from captum_transformer.rules.propagate import transposed
from captum_transformer.trace.numeric import accumulation_dtype, quotient
from captum_transformer.trace.operation import Operation, Value
from captum_transformer.trace.pooling import read_from, require_known, samples_in

# How many units in the last place a sum over tokens may be off.
_ROUNDING = 64


def with_evidence(
    passed: Mapping[Value, Tensor], ledger: Ledger, selection: Selection
) -> dict[Value, Tensor]:
    """Adds to what has passed attention as much of what each pooled token says by itself.

    Each wanted value is weighed by itself, so that none depends on what else is asked for.

    Args:
        passed: what has passed attention, at the wanted values.
        ledger: that of what has passed; what is added is noted there, too.
        selection: what is explained.
    """
    operations, calls = selection.history.operations, selection.history.calls
    require_known(operations, calls, len(selection.forward.inputs[0]))
    pooling = read_from(operations, calls)
    if not pooling:
        return dict(passed)
    flow = TokenFlow(selection.forward.tape, {})
    found: dict[tuple[Operation, ...], tuple[dict[Value, Tensor], Tensor]] = {}
    together = dict(passed)
    for wanted, relevance in passed.items():
        of_it = tuple(o for o in pooling if o.traced()[0][1].descends_from(wanted))
        if of_it and of_it not in found:
            found[of_it] = _evidence(selection, of_it, flow)
        if of_it:
            evidence, pooled = found[of_it]
            weighed = _weighed(evidence, pooled * total(wanted, relevance))
            of_own = Ledger()  # not looked at, as that would wait for the device once more
            own = flow(weighed, [wanted], of_own)
            together[wanted] = relevance + own[wanted]
            ledger.join(of_own)
    return together


def _evidence(
    selection: Selection, pooling: Sequence[Operation], flow: TokenFlow
) -> tuple[dict[Value, Tensor], Tensor]:
    """Value times gradient of each pooled token, less its part of the sum over all of them.

    So the sum is zero, and of a token that the score is read from alone nothing is left. Beside it,
    which part of what each sample's score is read from is pooled.
    """
    values = [value for operation in pooling for _, value in operation.traced()]
    seeds = seed(selection.selected, selection.value)
    parts = flow(seeds, values)
    edges = [operation.edge for operation in pooling if operation.edge is not None]
    slopes = selection.forward.gradients(selection.selected, edges)
    evidence: dict[Value, Tensor] = {}
    pooled = torch.zeros_like(
        selection.selected, dtype=accumulation_dtype(selection.selected.dtype)
    )
    for operation, value, slope in zip(pooling, values, slopes, strict=True):
        samples = samples_in(value)
        if slope is None or samples is None:
            continue
        axis, which = samples
        ((operand, _),) = operation.traced()
        dtype = accumulation_dtype(slope.dtype)
        data, beside = operand.tensor.to(dtype), [None] * (len(operation.outputs) - 1)
        (back,) = transposed(operation, [data], [slope.to(dtype), *beside])
        if back is None:
            continue
        said, part = _of_tokens(value, data * back), _of_tokens(value, parts[value])
        read = axis.total(part)
        mean = quotient(axis.total(said), read)
        own = said - part * axis.spread(mean, value.shape)
        # Where one token is read, or all say the same, what is left is rounding, not evidence.
        size = axis.total(said.abs()) * _ROUNDING * torch.finfo(dtype).eps
        nothing = own.abs() * _width(value) <= axis.spread(size, value.shape)
        own = own.masked_fill(nothing | ~axis.spread(read != 0, value.shape), 0.0)
        if value in evidence:
            evidence[value] = evidence[value] + own
        else:
            evidence[value] = own
            pooled[which] += read
    return evidence, pooled


def _weighed(evidence: dict[Value, Tensor], passed: Tensor) -> dict[Value, Tensor]:
    """The same, such that what is positive weighs as much as `passed`."""
    found = {value: samples_in(value) for value in evidence}
    known = {value: samples for value, samples in found.items() if samples is not None}
    positive = torch.zeros_like(passed)
    for value, (axis, which) in known.items():
        positive[which] += axis.total(evidence[value].clamp_min(0))
    weight = quotient(passed, positive)
    return {
        value: evidence[value] * axis.spread(weight[which], value.shape)
        for value, (axis, which) in known.items()
    }


def _of_tokens(value: Value, tensor: Tensor) -> Tensor:
    """The sum over each token's features, spread evenly over them."""
    dims = [axis.dim(value.shape) for axis in value.features or ()]
    known = [dim for dim in dims if dim is not None]
    return (tensor.sum(known, keepdim=True) / _width(value)).expand(value.shape)


def _width(value: Value) -> int:
    return math.prod(axis.size for axis in value.features or ())
