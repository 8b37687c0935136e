"""Attention's softmax with the gradient that it has at another temperature (GIM, 2025).

The forward pass is the model's own. In the backward pass the derivative of the probabilities is
taken at scores divided by the temperature, but without the factor of that division.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_transformer.rules.gradient.hold import MARK, refused
from captum_transformer.rules.gradient.share import parts_of_attention
from captum_transformer.trace.applied_weights import applied_weights
from captum_transformer.trace.attention import FusedAttention, fused_attention
from captum_transformer.trace.blocks import row_blocks
from captum_transformer.trace.dimensions import axis_after
from captum_transformer.trace.flex import log_sum_exp_is_used
from captum_transformer.trace.kinds import COPIES, Kind
from captum_transformer.trace.nested import leaves, mapped
from captum_transformer.trace.numeric import accumulation_dtype, in_full
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.recorder import ForwardRules
from captum_transformer.trace.statistics import softmax_dim, sums_to_one_again
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of
from captum_transformer.trace.walks import found_behind

# The note of a softmax whose weights are applied to a signal.
_ATTENDS = object()


def at_temperature(temperature: float) -> ForwardRules:
    """Returns the rules that take the gradient of attention's softmax at a temperature.

    For fused attention they include the uniform rule, which they would otherwise replace.
    """
    return {
        Kind.SOFTMAX: partial(_soften, temperature=temperature),
        Kind.ATTENTION: partial(_soften_attention, temperature=temperature),
        Kind.PRODUCT: _note_attention,
        Kind.MUL: _note_attention,
    }


def _soften(operation: Operation, *, temperature: float) -> Any:
    ((scores, _),) = operation.traced()
    return _Softmax.apply(scores.tensor, operation, temperature)


def _soften_attention(operation: Operation, *, temperature: float) -> Any:
    # With gradients enabled, as in the model: which kernel runs may depend on that.
    native = operation.run(lambda operand: operand.tensor)
    signals = [operand.tensor for operand, _ in operation.traced()]
    return _Attention.apply([native], operation, temperature, *signals)


def _note_attention(operation: Operation) -> Any:
    """Marks the softmax whose weights an operation applies to a signal.

    Only this shows that the softmax attends: the softmax of a classifier or a router does not.
    """
    softmaxes = [o for _, value in applied_weights(operation) for o in _softmaxes(value)]
    if all(softmax.kind is Kind.SOFTMAX for softmax in softmaxes):
        for softmax in softmaxes:
            softmax.note = _ATTENDS
        return NotImplemented
    return refused(
        operation,
        "the softmax of its weights is written by hand, or masked and normalised again, and the "
        "rule for its temperature applies to the whole softmax",
        "Call `torch.softmax`, of scores that are masked by minus infinity; ",
    )


def _softmaxes(weights: Value) -> Iterator[Operation]:
    """Yields the softmaxes that weights come from, or operations that normalise them again."""
    return found_behind(weights, _softmax_of)


def _softmax_of(value: Value) -> list[Value] | Operation:
    operation = value.operation
    if operation is None:
        return []
    if softmax_dim(operation) is not None or sums_to_one_again(operation, in_rows=False):
        return operation
    sources = [source for _, source in operation.traced()]
    if operation.kind in COPIES or len(sources) == 1:
        return sources
    return [source for source in sources if _are_keys_of(value, operation, source)]


def _are_keys_of(output: Value, operation: Operation, source: Value) -> bool:
    """Whether an operand's keys are those of the output, unlike what heads are weighted by."""
    if output.is_cut:
        return source.is_cut or source.weighs_tokens
    if source.keys is None or output.keys is None:
        return source.keys is not None
    operand = next(operand for operand, value in operation.traced() if value is source)
    view = view_of(operation, output)
    return axis_after(operation, operand, source.keys, output, view) == output.keys


class _Softmax(torch.autograd.Function):
    """A softmax whose backward is that at another temperature if its weights attend.

    A row without any key has a gradient of zero.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, operation: Operation, temperature: float) -> Tensor:
        output: Tensor = operation.run(lambda _: scores.detach())
        ctx.operation, ctx.temperature, ctx.dtype = operation, temperature, scores.dtype
        # In the dtype in which it was computed, which autocast may have chosen.
        ctx.save_for_backward(scores.detach().to(output.dtype), MARK)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, _ = ctx.saved_tensors
        if ctx.operation.note is _ATTENDS:
            own = own.to(accumulation_dtype(own.dtype)) / ctx.temperature
        with torch.enable_grad(), torch.autocast(own.device.type, enabled=False):
            scores = own.detach().requires_grad_()
            weights: Tensor = ctx.operation.run(lambda _: scores)
        arriving = gradients[0].to(weights.dtype)
        (slope,) = torch.autograd.grad(weights, scores, arriving)
        return slope.masked_fill(weights.isnan(), 0.0).to(ctx.dtype), None, None


class _Attention(torch.autograd.Function):
    """Fused attention whose backward computes the probabilities in blocks of queries."""

    @staticmethod
    def forward(
        ctx: Any, native: list[Any], operation: Operation, temperature: float, *_: Tensor
    ) -> Any:
        result = native.pop()
        have_gradient = [tensor.requires_grad for tensor in leaves(Tensor, result)]
        result = mapped(Tensor.detach, Tensor, result)
        outputs = zip(leaves(Tensor, result), have_gradient, strict=True)
        ctx.mark_non_differentiable(*(tensor for tensor, has_one in outputs if not has_one))
        ctx.set_materialize_grads(False)
        ctx.call, ctx.temperature = fused_attention(operation), temperature
        ctx.save_for_backward(MARK)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        arriving, *beside = gradients
        if any(gradient is not None for gradient in beside):
            raise log_sum_exp_is_used()
        operation: Operation = ctx.call.operation
        found: dict[Operand, Tensor] = {}
        if arriving is not None:
            with torch.autocast(arriving.device.type, enabled=False):
                found = _gradients(ctx.call, arriving, ctx.temperature)
        parts = parts_of_attention(operation)
        given = [
            (found[o] / parts[o]).to(o.dtype) if o in found else None for o, _ in operation.traced()
        ]
        return None, None, None, *given


def _gradients(call: FusedAttention, arriving: Tensor, temperature: float) -> dict[Operand, Tensor]:
    """Returns the gradients of a call's queries, keys, values and mask, in full precision."""
    query, key, value = in_full(call.query), call.keys(), call.values()
    lead = arriving.shape[:-2]
    signals = {operand for operand, _ in call.operation.traced()}
    shared = (query[..., 0, 0] + key[..., 0, 0]).shape  # values may have more heads
    leads = {call.query: shared, call.key: shared, call.value: lead}
    totals = {
        operand: value.new_zeros((*before, *operand.size[-2:]))
        for operand, before in leads.items()
        if operand in signals
    }
    if call.mask in signals:
        totals[call.mask] = value.new_zeros(call.mask.size)
    for rows in row_blocks((*lead, arriving.shape[-2], key.shape[-2]), key.device):
        queries, above = query[..., rows, :], arriving[..., rows, :].to(value.dtype)
        with torch.enable_grad():
            products = (queries @ key.mT).requires_grad_()
            scores, bias = call.scores(products, rows)
        own = scores.detach()
        if call.value in signals:
            totals[call.value] += call.softmax(own, bias).mT @ above
        if signals == {call.value}:
            continue
        soft = call.softmax(own / temperature, None if bias is None else bias / temperature)
        slope = above @ value.mT
        slope = soft * (slope - (soft * slope).sum(-1, keepdim=True))
        if call.mask in signals:
            total = totals[call.mask]
            part = total[..., rows, :] if total.ndim > 1 < total.shape[-2] else total
            part += slope.sum_to_size(part.shape)
        if scores.requires_grad:  # otherwise the model's own function doesn't use the scores
            slope = slope.sum_to_size(scores.shape)
            (slope,) = torch.autograd.grad(scores, products, slope)
            if call.query in signals:
                totals[call.query][..., rows, :] = slope @ key
            if call.key in signals:
                totals[call.key] += slope.mT @ queries
    return {o: total if o is call.mask else call.ungroup(total, o) for o, total in totals.items()}
