"""FlexAttention, computed and differentiated in blocks of queries.

`torch.nn.attention.flex_attention` calls a higher-order operator, which is what the trace sees. On
CPUs it has no derivative, and without a compiler it computes all pairs of tokens at once. The trace
therefore computes the same result as torch without a compiler, but block by block, and
differentiates that.
"""

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.blocks import row_blocks
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.scoring import INSTEAD, Scoring

_MODULE = "torch.nn.attention.flex_attention"
# Modules whose frames are skipped when looking for the caller that reads `requires_grad`.
_BETWEEN = frozenset({"captum_transformer.trace.mode", "torch.overrides"})


def requires_grad(tensor: Tensor) -> bool:
    """Whether a tensor requires a gradient; False if the caller is `flex_attention` itself.

    `flex_attention` refuses tensors on a CPU that require a gradient, since its own kernels have no
    derivative there.
    """
    with torch._C.DisableTorchFunction():
        required = tensor.requires_grad
    asking = sys._getframe(1)
    while asking.f_back is not None and asking.f_globals["__name__"] in _BETWEEN:
        asking = asking.f_back
    return required and asking.f_globals["__name__"] != _MODULE


def as_attention(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the arguments of torch's higher-order operator to those of `flex_attend`."""
    query, key, mask = (arguments[name] for name in ("query", "key", "block_mask"))
    mods = [
        _with_buffers(function, arguments.get(f"{name}_other_buffers", ()))
        for name, function in (("score_mod", arguments["score_mod"]), ("mask_mod", mask[-1]))
    ]
    _refuse_blocks_alone(key, mask)
    scoring = Scoring(*mods)
    captured = scoring.captured((*query.shape[:-1], key.shape[-2]), query.device)
    qkv = {name: arguments[name] for name in ("query", "key", "value")}
    return {**qkv, "scale": arguments["scale"], "scoring": scoring, "captured": captured}


def _with_buffers(function: Callable[..., Tensor], buffers: tuple[Any, ...]) -> Any:
    return (lambda *arguments: function(*arguments, *buffers)) if buffers else function


def _refuse_blocks_alone(key: Tensor, mask: tuple[Any, ...]) -> None:
    """Refuses a block mask that omits blocks without a mask_mod: only compiled code skips them."""
    from torch.nn.attention.flex_attention import noop_mask

    *tables, _, size, mask_mod = mask
    if mask_mod is not noop_mask or size >= key.shape[-2]:
        return
    _, _, partly, _, fully, *_ = tables
    visited = partly if fully is None else partly + fully
    left_out = (visited < -(-key.shape[-2] // size)).any()
    if truth(left_out, "whether a block mask leaves blocks out"):
        raise UnsupportedOperationError(
            "A `BlockMask` without a mask_mod leaves blocks out: compiled `flex_attention` skips "
            "them and uncompiled `flex_attention` does not, so it is ambiguous what the model "
            "computes. Pass the corresponding mask_mod to `BlockMask.from_kv_blocks`."
        )


def log_sum_exp_is_used() -> UnsupportedOperationError:
    """Returns the error for a model that uses the returned log-sum-exp."""
    return UnsupportedOperationError(
        "The model computes with the log-sum-exp that `flex_attention` returns beside its output, "
        f"as for attention sinks, and its relevance is undefined. {INSTEAD}"
    )


def flex_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    scoring: Scoring,
    captured: list[Tensor],  # noqa: ARG001 - for the trace to see
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes FlexAttention; returns outputs, and base-2 log-sum-exps and maxima of the scores."""
    result: tuple[Tensor, Tensor, Tensor] = _Attend.apply(query, key, value, scale, scoring)
    return result


def _attended(
    query: Tensor, key: Tensor, value: Tensor, scores_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the outputs and the scores of some queries."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    dtype = accumulation_dtype(query.dtype)
    scores = scores_of(query.to(dtype) @ key.to(dtype).transpose(-1, -2))
    # A query whose keys are all masked gets zeros, and has no gradient.
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    return weights.to(query.dtype) @ value.to(query.dtype), scores


class _Attend(torch.autograd.Function):
    """Attention in blocks of queries, in the forward pass and in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, scoring: Scoring
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.scoring = scale, scoring
        ctx.set_materialize_grads(False)
        device, dtype = query.device, query.dtype
        if torch.is_autocast_enabled(device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        lead = query.shape[:-1]
        # The output has the memory layout of the queries, since models view it accordingly.
        order = (*sorted(range(3), key=query.stride, reverse=True), 3)
        out = torch.empty_permuted((*lead, value.shape[-1]), order, dtype=dtype, device=device)
        full = accumulation_dtype(dtype)
        sums, maxima = (torch.empty(lead, dtype=full, device=device) for _ in range(2))
        with torch.autocast(device.type, enabled=False):
            for rows in row_blocks((*lead, key.shape[-2]), device):
                scores_of = partial(_scores, scale, scoring, rows)
                out[..., rows, :], scores = _attended(query[..., rows, :], key, value, scores_of)
                sums[..., rows] = scores.logsumexp(-1) / math.log(2)
                maxima[..., rows] = scores.amax(-1) / math.log(2)
        ctx.mark_non_differentiable(maxima, *([] if any(ctx.needs_input_grad[:2]) else [sums]))
        return out, sums, maxima

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, arriving: Tensor | None, of_sums: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        if of_sums is not None:
            raise log_sum_exp_is_used()
        given: list[Tensor | None] = [None] * 5
        if arriving is None:
            return tuple(given)
        query, key, value = tensors = ctx.saved_tensors
        dtype = accumulation_dtype(query.dtype)
        needed = [place for place in range(3) if ctx.needs_input_grad[place]]
        totals = {place: torch.zeros_like(tensors[place], dtype=dtype) for place in needed}
        with torch.autocast(query.device.type, enabled=False), torch.enable_grad():
            for rows in row_blocks((*query.shape[:-1], key.shape[-2]), query.device):
                parts = [t.detach().to(dtype) for t in (query[..., rows, :], key, value)]
                wanted = [parts[place].requires_grad_() for place in needed]
                scores_of = partial(_scores, ctx.scale, ctx.scoring, rows)
                out = _attended(parts[0], parts[1], parts[2], scores_of)[0]
                if not out.requires_grad:  # the score_mod ignores the score
                    continue
                block = arriving[..., rows, :].to(dtype)
                gradients = torch.autograd.grad(out, wanted, block, allow_unused=True)
                for place, gradient in zip(needed, gradients, strict=True):
                    if gradient is not None:
                        part = totals[place][..., rows, :] if place == 0 else totals[place]
                        part += gradient
        for place, total in totals.items():
            given[place] = total.to(tensors[place].dtype)
        return tuple(given)


def _scores(scale: float, scoring: Scoring, rows: slice, products: Tensor) -> Tensor:
    return scoring(products * scale, rows)
