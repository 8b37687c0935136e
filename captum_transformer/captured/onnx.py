"""Captured calls as ONNX models."""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram, default_decompositions

aten = torch.ops.aten


def save_as_onnx(path: str | os.PathLike[str], program: ExportedProgram) -> None:
    """Writes a program as an ONNX model, which needs the packages onnx and onnxscript.

    Args:
        path: the file.
        program: a captured call, whose weights become part of the model.
    """
    program = program.run_decompositions({**default_decompositions(), **_DECOMPOSITIONS})
    # Runtimes optimise it when they load it, in seconds; the exporter takes minutes.
    count = len(program.graph_signature.user_outputs)
    names = ["relevance"] if count == 1 else [f"relevance_{n}" for n in range(count)]
    found = torch.onnx.export(
        program, dynamo=True, optimize=False, verbose=False, output_names=names
    )
    assert found is not None
    found.save(path)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,  # noqa: ARG001 - zero, as models are in evaluation mode
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    scores = _scores(query, key, attn_mask, scale, is_causal=is_causal)
    highest = scores.amax(-1, keepdim=True)
    masked = highest == -math.inf  # all of a row: the kernel returns zeros
    highest = highest.masked_fill(masked, 0.0)
    weights = (scores - highest).exp()
    total = weights.sum(-1, keepdim=True).masked_fill(masked, 1.0)
    return _by_tokens((weights / total) @ value), (total.log() + highest).squeeze(-1)


def _attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,  # noqa: ARG001
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = _scores(query, key, attn_mask, scale, is_causal=is_causal)
    weights = (scores - logsumexp.unsqueeze(-1)).exp()
    of_weights = grad @ value.transpose(-1, -2)
    of_scores = weights * (of_weights - (grad * out).sum(-1, keepdim=True)) * _scale(query, scale)
    return (
        _by_tokens(of_scores @ key),
        _by_tokens(of_scores.transpose(-1, -2) @ query),
        _by_tokens(weights.transpose(-1, -2) @ grad),
    )


def _scores(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None, *, is_causal: bool
) -> Tensor:
    scores = query @ key.transpose(-1, -2) * _scale(query, scale)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return scores if mask is None else scores + mask


def _scale(query: Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def _by_tokens(heads: Tensor) -> Tensor:
    """Returns heads in the layout of the fused kernel's results, as the graph takes views."""
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


def _convolution_backward(
    grad: Tensor,
    signal: Tensor,
    weight: Tensor,
    bias_sizes: Any,  # noqa: ARG001
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    if any(output_mask[1:]):
        return NotImplemented  # gradients of parameters, which no method computes
    rest = [0] * len(output_padding)
    if not transposed:
        sizes = zip(grad.shape[2:], signal.shape[2:], weight.shape[2:], strict=True)
        steps = zip(sizes, stride, padding, dilation, strict=True)
        rest = [
            before - ((after - 1) * step - 2 * pad + apart * (kernel - 1) + 1)
            for (after, before, kernel), step, pad, apart in steps
        ]
    options = stride, padding, dilation, not transposed, rest, groups
    return aten.convolution(grad, weight, None, *options), None, None


_DECOMPOSITIONS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,  # noqa: SLF001
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (  # noqa: SLF001
        _attention_backward
    ),
    aten.convolution_backward.default: _convolution_backward,
}
