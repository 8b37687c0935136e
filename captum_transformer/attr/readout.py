"""The evidence for the class in each pooled token that a score is read from."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_transformer.attr.selection import Selection
from captum_transformer.attr.transformer_method import seed
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.ledger import Ledger, total
from captum_transformer.rules.propagate import transposed
from captum_transformer.trace.numeric import accumulation_dtype, quotient
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.pooling import read_from, samples_in
from captum_transformer.trace.value import Value

# How many units in the last place a sum over tokens may be off.
_ROUNDING = 64


def with_evidence(
    passed: Mapping[Value, Tensor], ledger: Ledger, selection: Selection
) -> dict[Value, Tensor]:
    """Adds the pooled tokens' own evidence, equally weighted, to relevance that passed attention.

    Each wanted value is weighted separately, so its result doesn't depend on the other values.

    Args:
        passed: the relevance that has passed attention, at the wanted values.
        ledger: the ledger of this relevance; added evidence is recorded there, too.
        selection: the scores that are explained.
    """
    history, samples = selection.history, len(selection.forward.inputs[0])
    pooling = read_from(history.operations, history.calls, samples)
    if not pooling:
        return dict(passed)
    _require_samples(pooling)
    flow = TokenFlow(selection.forward.tape, {})
    found: dict[tuple[Operation, ...], tuple[dict[Value, Tensor], Tensor]] = {}
    together = dict(passed)
    for wanted, relevance in passed.items():
        of_it = tuple(o for o in pooling if any(v.descends_from(wanted) for _, v in o.traced()))
        if not of_it:
            continue
        if of_it not in found:
            found[of_it] = _evidence(selection, of_it, flow)
        evidence, pooled = found[of_it]
        weighed = _weighed(evidence, pooled * total(wanted, relevance))
        of_own = Ledger()  # not checked, which would wait for the device once more
        own = flow(weighed, [wanted], of_own)
        together[wanted] = relevance + own[wanted]
        ledger.join(of_own)
    return together


def _require_samples(pooling: Sequence[Operation]) -> None:
    for operation in pooling:
        if any(samples_in(value) is None for _, value in operation.traced()):
            raise UnsupportedOperationError(
                f"{operation.described} pools the tokens that the score is read from, but it is "
                f"unknown which of them belong to which sample. Explain the samples one by one "
                "(`internal_batch_size=1`), or without the evidence of pooled tokens "
                "(`pooled_evidence=False`)."
            )


def _evidence(
    selection: Selection, pooling: Sequence[Operation], flow: TokenFlow
) -> tuple[dict[Value, Tensor], Tensor]:
    """Returns value times gradient of each pooled token, minus its part of the sum over them.

    So the sum is zero, and nothing is left if the score is read from one token alone. Also returns
    which part of each sample's score is read from pooled tokens.
    """
    seeds = seed(selection.forward, selection.selected, selection.value)
    outputs = [operation.outputs[0] for operation in pooling]
    shares = flow(seeds, [output for output in outputs if output is not None])
    edges = [operation.edge for operation in pooling if operation.edge is not None]
    slopes = selection.forward.gradients(selection.selected, edges)
    said: dict[Value, Tensor] = {}
    parts: dict[Value, Tensor] = {}
    for operation, output, slope in zip(pooling, outputs, slopes, strict=True):
        if slope is None or output is None:
            continue
        dtype = accumulation_dtype(slope.dtype)
        data = [operand.tensor.to(dtype) for operand, _ in operation.traced()]
        beside = [None] * (len(operation.outputs) - 1)
        backs = transposed(operation, data, [slope.to(dtype), *beside])
        values = [value for _, value in operation.traced()]
        reached = flow({output: shares[output]}, values)
        for value, tensor, back in zip(values, data, backs, strict=True):
            if back is not None:
                # Tokens that are left out of a mean may hold anything, even NaN.
                given = tensor.masked_fill(back == 0, 0.0) * back
                _add(said, value, _of_tokens(value, given))
                _add(parts, value, _of_tokens(value, reached[value]))
    return _compared(said, parts, next(iter(seeds.values())))


def _compared(
    said: Mapping[Value, Tensor], parts: Mapping[Value, Tensor], like: Tensor
) -> tuple[dict[Value, Tensor], Tensor]:
    """Returns each token's evidence minus its part of the sample's sum, and the pooled parts."""
    places = {value: found for value in said if (found := samples_in(value)) is not None}
    whole, size, pooled = (torch.zeros_like(like) for _ in range(3))
    for value, (axis, which) in places.items():
        whole[which] += axis.total(said[value])
        size[which] += axis.total(said[value].abs())
        pooled[which] += axis.total(parts[value])
    mean = quotient(whole, pooled)
    # If one token is read, or all have the same evidence, only rounding errors are left.
    size = size * _ROUNDING * torch.finfo(size.dtype).eps
    evidence: dict[Value, Tensor] = {}
    for value, (axis, which) in places.items():
        own = said[value] - parts[value] * axis.spread(mean[which], value.shape)
        nothing = own.abs() * _width(value) <= axis.spread(size[which], value.shape)
        unread = axis.spread(pooled[which] == 0, value.shape)
        evidence[value] = own.masked_fill(nothing | unread, 0.0)
    return evidence, pooled


def _add(found: dict[Value, Tensor], value: Value, tensor: Tensor) -> None:
    found[value] = found[value] + tensor if value in found else tensor


def _weighed(evidence: dict[Value, Tensor], passed: Tensor) -> dict[Value, Tensor]:
    """Scales the evidence so that its positive part sums to `passed` in each sample."""
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
    """Returns the sum over each token's features, spread evenly over them."""
    dims = [axis.dim(value.shape) for axis in value.features or ()]
    known = [dim for dim in dims if dim is not None]
    return (tensor.sum(known, keepdim=True) / _width(value)).expand(value.shape)


def _width(value: Value) -> int:
    return math.prod(axis.size for axis in value.features or ())
