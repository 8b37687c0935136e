"""Relevance through an attention call: the z-rule on its two products, half to each operand."""

import torch
from torch import Tensor

from captum_transformer.rules.linear import positive_part
from captum_transformer.rules.propagate import unsupported
from captum_transformer.trace.attention import AttentionCall, ExplicitAttention, FusedAttention
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operation


def attention_relevance(call: AttentionCall, relevance: Tensor, rows: slice) -> Tensor:
    """The relevance of a block of attention probabilities: ``A * (s V^T) / 2``, ``s = R / out``."""
    quotient = output_quotient(call, relevance)[..., rows, :]
    return call.probabilities(rows) * (quotient @ call.values().transpose(-1, -2)) / 2


def output_quotient(call: AttentionCall, relevance: Tensor) -> Tensor:
    """``R / out`` of an attention call, as ``(..., Q, D)``."""
    result = call.operation.result
    if result is None:
        raise RuntimeError("the output of an attention call is always kept")
    output = in_full(result)
    return ratio(call.outputs(relevance.to(output.dtype)), call.outputs(output))


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
    keys, mask = call.keys(), call.mask
    to_values, to_keys = torch.zeros_like(values), torch.zeros_like(keys)
    to_queries, to_mask = [], []
    sums: list[Tensor] = []
    for rows in call.blocks():
        queries, bias = call.queries(rows), call.bias(rows)
        products = queries @ keys.transpose(-1, -2)
        weights = call.softmax(products, bias)
        block = quotient[..., rows, :]
        to_values = to_values + values * (weights.transpose(-1, -2) @ block) / 2
        relevance = weights * (block @ values.transpose(-1, -2)) / 2
        if bias is not None and mask is not None and mask.dtype != torch.bool:
            parts = _parts_of_sum(products * call.scale, bias, relevance)
            totals = [_totals(call, part) for part in (*parts, relevance)]
            sums = [a + b for a, b in zip(sums, totals, strict=True)] if sums else totals
            relevance, onto_bias = parts
            if mask.value is not None:
                to_mask.append(onto_bias)
        onto_queries, onto_keys = _through_scores(call, queries, keys, products, relevance)
        to_queries.append(onto_queries)
        to_keys = to_keys + onto_keys
    received = {id(call.query): torch.cat(to_queries, -2), id(call.key): to_keys}
    if mask is not None and to_mask:
        received[id(mask)] = torch.cat(to_mask, -2)
    if sums:
        onto_scores, onto_mask, goal = sums
        magnitude = onto_scores.abs() + onto_mask.abs()
        for key, tensor in received.items():
            total = onto_mask if mask is not None and key == id(mask) else onto_scores
            scale = ratio(ratio(total.abs(), magnitude) * goal, total)
            received[key] = tensor * _per_sample(call, scale, tensor)
    for operand in (call.query, call.key, mask):
        if operand is not None and id(operand) in received:
            tensor = received[id(operand)]
            heads = operand is call.key
            received[id(operand)] = (
                call.ungroup(tensor, operand) if heads else tensor.sum_to_size(operand.size)
            )
    return to_values, received


def _parts_of_sum(scores: Tensor, bias: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """The z-rule for scores and what is added to them; where nothing is, the scores take all."""
    shares = ratio(relevance, scores + bias)
    onto_bias = torch.where(shares == 0, torch.zeros_like(shares), bias * shares)
    return torch.where((bias == 0) & (scores != 0), relevance, scores * shares), onto_bias


def _through_scores(
    call: FusedAttention, queries: Tensor, keys: Tensor, products: Tensor, relevance: Tensor
) -> tuple[Tensor, Tensor]:
    """Half to queries and half to keys; constant queries (or keys) are weights of a linear map."""
    if call.query.value is not None and call.key.value is not None:
        quotient = ratio(relevance, products) / 2
        return queries * (quotient @ keys), keys * (quotient.transpose(-1, -2) @ queries)
    sizes = queries.abs(), keys.abs()
    positive = positive_part(products, sizes[0] @ sizes[1].transpose(-1, -2), keys.shape[-1])
    quotient = ratio(relevance, positive) / 2
    onto_queries = queries * (quotient @ keys) + sizes[0] * (quotient @ sizes[1])
    quotient = quotient.transpose(-1, -2)
    return onto_queries, keys * (quotient @ queries) + sizes[1] * (quotient @ sizes[0])


def _totals(call: FusedAttention, tensor: Tensor) -> Tensor:
    return _samples(call, tensor).total(tensor)


def _per_sample(call: FusedAttention, scale: Tensor, tensor: Tensor) -> Tensor:
    return _samples(call, tensor).spread(scale, tensor.shape)


def _samples(call: FusedAttention, tensor: Tensor) -> Axis:
    samples = call.output.samples
    if samples is None:
        raise unsupported(call.operation, "the samples of the batch can't be told apart")
    return Axis(samples.outer, samples.size, tensor.numel() // samples.size // samples.outer)
