"""Relevance through an attention call: the z-rule on its two products, half to each operand."""

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.ledger import added_up
from captum_transformer.rules.propagate import Shares, unsupported
from captum_transformer.rules.relevance.addition import parts_of_sum, scales
from captum_transformer.rules.relevance.linear import half_quotient
from captum_transformer.rules.relevance.totals import remaining
from captum_transformer.trace.attention import AttentionCall, ExplicitAttention, FusedAttention
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operand, Operation

_ALL = slice(None)


def attention_relevance(call: AttentionCall, relevance: Tensor, rows: slice) -> Tensor:
    """Returns the relevance of a block of probabilities: ``A * (s V^T) / 2``, ``s = R / out``."""
    half = half_of_quotient(call, relevance, rows)
    return (half @ call.values().transpose(-1, -2)).mul_(call.probabilities(rows))


def half_of_quotient(call: AttentionCall, relevance: Tensor, rows: slice) -> Tensor:
    """Returns ``R / (2 out)`` for a block of an attention call's outputs: ``(..., rows, D)``."""
    result = call.operation.result
    if result is None:
        raise RuntimeError("the output of an attention call is always kept")
    output = in_full(result)
    arriving = call.outputs(relevance.to(output.dtype))[..., rows, :]
    return ratio(arriving, call.outputs(output)[..., rows, :]).div_(2)


def attention_rule(operation: Operation, relevance: Tensor) -> Shares:
    """Distributes relevance to queries, keys and values (or to probabilities and values)."""
    call, half = operation.attention, half_of_quotient(operation.attention, relevance, _ALL)
    values, of_mask = call.values(), None
    if isinstance(call, ExplicitAttention):
        weights = call.probabilities(_ALL)
        to_values = weights.transpose(-1, -2) @ half
        to_weights = (half @ values.transpose(-1, -2)).mul_(weights)
        shares = {call.weights: call.to_weights(to_weights)}
    else:
        to_values, shares, of_mask = _through_fused(call, values, half)
    shares[call.value] = call.to_values(to_values.mul_(values))
    received = [shares.get(operand) for operand, _ in operation.traced()]
    both = len({o is call.value for o, _ in operation.traced()}) == 2
    reason = Reason.EPSILON if both else Reason.CONSTANT
    rest = remaining(operation, [relevance], received)
    if of_mask is None:
        return Shares(received, {reason: rest})
    return Shares(received, {reason: added_up([rest, -of_mask]), Reason.ADDED: of_mask})


def _through_fused(
    call: FusedAttention, values: Tensor, half: Tensor
) -> tuple[Tensor, dict[Operand, Tensor], Tensor | None]:
    """Propagates through probabilities, softmax, mask and scores of a fused call, by blocks.

    Returns:
        The share of the values before it is multiplied by them, the shares of the other operands,
        and the share of a constant mask.
    """
    keys, mask = call.keys(), call.mask
    lead = half.shape[:-2]
    to_values, to_keys = (tensor.new_zeros(*lead, *tensor.shape[-2:]) for tensor in (values, keys))
    # One tensor for all blocks: small tensors that stay between large ones that are freed would
    # fragment the memory, up to the size of a map of all pairs of tokens.
    to_queries = keys.new_empty(*half.shape[:-1], keys.shape[-1])
    to_mask: list[Tensor] = []
    sums: list[Tensor] = []
    for rows in call.blocks():
        queries = call.queries(rows)
        products = queries @ keys.transpose(-1, -2)
        scores, bias = call.scores(products, rows)
        weights = call.softmax(scores, bias)
        to_values += weights.transpose(-1, -2) @ half[..., rows, :]
        relevance = (half[..., rows, :] @ values.transpose(-1, -2)).mul_(weights)
        if bias is not None and call.adds:
            parts = parts_of_sum(scores, bias, relevance, skip=False)
            totals = [_samples(call, part).total(part) for part in (*parts, relevance)]
            sums = [a + b for a, b in zip(sums, totals, strict=True)] if sums else totals
            relevance, onto_bias = parts
            if mask is not None and mask.value is not None:
                to_mask.append(onto_bias)
        onto_queries, onto_keys = _through_scores(call, queries, keys, products, relevance)
        to_queries[..., rows, :] = onto_queries
        to_keys += onto_keys
    received = {call.query: to_queries, call.key: to_keys}
    if mask is not None and to_mask:
        received[mask] = torch.cat(to_mask, -2)
    of_mask = None
    if sums:
        *totals, goal = sums
        of_scores, of_bias = scales(torch.stack(totals), goal)
        for operand, tensor in received.items():
            factor = of_bias if operand is mask else of_scores
            received[operand] = tensor * _samples(call, tensor).spread(factor, tensor.shape)
        of_mask = None if to_mask else totals[1] * of_bias
    fitted = {o: tensor.sum_to_size(o.size) for o, tensor in received.items() if o is not call.key}
    return to_values, {**fitted, call.key: call.ungroup(received[call.key], call.key)}, of_mask


def _through_scores(
    call: FusedAttention, queries: Tensor, keys: Tensor, products: Tensor, relevance: Tensor
) -> tuple[Tensor, Tensor]:
    """Gives half to queries and half to keys; a constant one is the weight of a linear map."""
    if call.query.value is not None and call.key.value is not None:
        half = ratio(relevance, products).div_(2)
        return queries * (half @ keys), keys * (half.transpose(-1, -2) @ queries)
    sizes = queries.abs(), keys.abs()
    magnitudes = sizes[0] @ sizes[1].transpose(-1, -2)
    half, _ = half_quotient(relevance, products, magnitudes, keys.shape[-1])
    onto_queries = queries * (half @ keys) + sizes[0] * (half @ sizes[1])
    half = half.transpose(-1, -2)
    return onto_queries, keys * (half @ queries) + sizes[1] * (half @ sizes[0])


def _samples(call: FusedAttention, tensor: Tensor) -> Axis:
    samples = call.output.samples
    if samples is None:
        raise unsupported(
            call.operation, "it is unknown which entries belong to which sample of the batch"
        )
    return Axis(samples.outer, samples.size, tensor.numel() // samples.size // samples.outer)
