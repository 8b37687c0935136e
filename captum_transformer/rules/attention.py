"""Relevance through an attention call: the z-rule on its two products, half to each operand."""

import torch
from torch import Tensor

from captum_transformer.rules.propagate import unsupported
from captum_transformer.trace.attention import AttentionCall, ExplicitAttention, FusedAttention
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.tape import Operation


def attention_relevance(call: AttentionCall, relevance: Tensor, rows: slice) -> Tensor:
    """The relevance of a block of attention probabilities: ``A * (s V^T) / 2``, ``s = R / out``."""
    quotient = output_quotient(call, relevance)[..., rows, :]
    return call.probabilities(rows) * (quotient @ call.values().transpose(-1, -2)) / 2


def output_quotient(call: AttentionCall, relevance: Tensor) -> Tensor:
    """``R / out`` of an attention call, as ``(..., Q, D)``."""
    result = call.operation.result
    if result is None:
        raise RuntimeError("the output of an attention call is always kept")
    return ratio(call.outputs(relevance), call.outputs(in_full(result)))


def attention_rule(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """What queries, keys and values (or probabilities and values) get."""
    call = operation.attention
    values = call.values()
    quotient = output_quotient(call, relevance)
    to_values = torch.zeros_like(values)
    shares: dict[int, Tensor] = {}
    if isinstance(call, ExplicitAttention):
        whole = slice(None)
        weights = call.probabilities(whole)
        to_values = values * (weights.transpose(-1, -2) @ quotient) / 2
        to_weights = weights * (quotient @ values.transpose(-1, -2)) / 2
        shares[id(call.weights)] = call.to_weights(to_weights)
    else:
        to_values, shares = _through_fused(call, values, quotient)
    shares[id(call.value)] = call.to_values(to_values)
    return [shares.get(id(operand)) for operand, _ in operation.traced()]


def _through_fused(
    call: FusedAttention, values: Tensor, quotient: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """Through probabilities, softmax, mask and scores of a fused call, a block at a time."""
    keys, samples = call.keys(), call.output.samples
    to_values, to_keys = torch.zeros_like(values), torch.zeros_like(keys)
    to_queries = []
    totals = [torch.zeros(()), torch.zeros(()), torch.zeros(())]
    for rows in call.blocks():
        weights = call.probabilities(rows)
        block = quotient[..., rows, :]
        to_values = to_values + values * (weights.transpose(-1, -2) @ block) / 2
        relevance = weights * (block @ values.transpose(-1, -2)) / 2
        queries = call.queries(rows)
        products = queries @ keys.transpose(-1, -2)
        bias = call.bias(rows)
        if bias is not None and call.mask is not None and call.mask.dtype != torch.bool:
            scores = products * call.scale
            shares = ratio(relevance, scores + bias)
            onto_bias = torch.where(shares == 0, torch.zeros_like(shares), bias * shares)
            scored = torch.where((bias == 0) & (scores != 0), relevance, scores * shares)
            if samples is None:
                raise unsupported(call.operation, "the samples of the batch can't be told apart")
            axis = Axis(
                samples.outer, samples.size, scored.numel() // samples.size // samples.outer
            )
            totals = [
                total.to(part) + axis.total(part)
                for total, part in zip(totals, (scored, onto_bias, relevance), strict=True)
            ]
            relevance = scored
        shares = ratio(relevance, products)
        to_queries.append(queries * (shares @ keys) / 2)
        to_keys = to_keys + keys * (shares.transpose(-1, -2) @ queries) / 2
    onto_queries = torch.cat(to_queries, -2)
    if totals[0].ndim and samples is not None:
        scored, onto_bias, goal = totals
        scale = ratio(ratio(scored.abs(), scored.abs() + onto_bias.abs()) * goal, scored)
        onto_queries = onto_queries * _per_sample(scale, onto_queries, samples)
        to_keys = to_keys * _per_sample(scale, to_keys, samples)
    return to_values, {
        id(call.query): onto_queries.sum_to_size(call.query.size),
        id(call.key): call.ungroup(to_keys, call.key),
    }


def _per_sample(scale: Tensor, tensor: Tensor, samples: Axis) -> Tensor:
    inner = tensor.numel() // samples.size // samples.outer
    return Axis(samples.outer, samples.size, inner).spread(scale, tensor.shape)
