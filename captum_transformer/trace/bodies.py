"""Functions that are traced by what they do inside: composites, and those written out here."""

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def body_of(function: types.FunctionType) -> types.FunctionType:
    """The function as if no argument asked for dispatch: what it calls is traced instead."""
    scope = {**function.__globals__, "has_torch_function": lambda *_: False}
    scope |= {
        "has_torch_function_unary": lambda *_: False,
        "has_torch_function_variadic": lambda *_: False,
    }
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    x1, x2 = torch.broadcast_tensors(x1, x2)  # type: ignore[no-untyped-call]
    return (F.normalize(x1, dim=dim, eps=eps) * F.normalize(x2, dim=dim, eps=eps)).sum(dim)


def _glu(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002 - its name in torch
    signal, gate = input.split(input.shape[dim] // 2, dim)  # type: ignore[no-untyped-call]
    gated: Tensor = signal * torch.sigmoid(gate)
    return gated


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:  # noqa: A002
    return input + value * (tensor1 / tensor2)


def _lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:  # noqa: A002
    return input + weight * (end - input)


def _column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t if t.ndim > 1 else t.reshape(-1, 1) for t in tensors], 1)


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    tensors = [t.reshape(1) if t.ndim == 0 else t for t in tensors]
    return torch.cat(tensors, 0 if tensors[0].ndim == 1 else 1)


def _vstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t if t.ndim > 1 else t.reshape(1, -1) for t in tensors], 0)


def written_into(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that writes its result into its first argument."""
    return lambda input, *args, **kwargs: input.copy_(body(input, *args, **kwargs))  # noqa: A006


# Functions of which the table needs no line, written in those that it has: products that they
# hide, and tensors that are given for their shape or type alone.
WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "cosine_similarity": _cosine_similarity,
    "glu": _glu,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    "column_stack": _column_stack,
    "hstack": _hstack,
    "vstack": _vstack,
    "row_stack": _vstack,
    "expand_as": lambda input, other: input.expand(other.shape),  # noqa: A006
    "reshape_as": lambda input, other: input.reshape(other.shape),  # noqa: A006
    "view_as": lambda input, other: input.view(other.shape),  # noqa: A006
    "type_as": lambda input, other: input.to(other.device, other.dtype),  # noqa: A006
}
# Python composites that keep what matters inside: their bodies are traced, not they themselves.
COMPOSITES = frozenset({F.multi_head_attention_forward, F.normalize, F.local_response_norm})
