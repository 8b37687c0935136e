"""Functions whose bodies are traced: composites of torch, and functions written out here."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.entries import ALIASES


def body_of(function: Any) -> types.FunctionType:
    """Returns the function without its own dispatch, so that the functions it calls are traced."""
    scope = {**function.__globals__, "has_torch_function": lambda *_: False}
    scope |= {
        "has_torch_function_unary": lambda *_: False,
        "has_torch_function_variadic": lambda *_: False,
    }
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    shapes = (tensor.shape for tensor in tensors)
    shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return tuple(tensor.expand(shape) for tensor in tensors)


def _at_least(ndim: int) -> Callable[..., Any]:
    def one(tensor: Tensor) -> Tensor:
        missing = max(ndim - tensor.ndim, 0)
        # As in NumPy, the third dimension is added at the end.
        behind = int(missing > 0 and ndim == 3 and tensor.ndim > 0)
        shape = (1,) * (missing - behind) + tuple(tensor.shape) + (1,) * behind
        return tensor.reshape(shape) if missing else tensor

    def all_of(*tensors: Any) -> Any:
        if len(tensors) == 1 and isinstance(tensors[0], Tensor):
            return one(tensors[0])
        given = tensors[0] if len(tensors) == 1 else tensors
        return tuple(map(one, given))

    return all_of


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    x1, x2 = _broadcast_tensors(x1, x2)
    return (F.normalize(x1, dim=dim, eps=eps) * F.normalize(x2, dim=dim, eps=eps)).sum(dim)


def _glu(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002 - its name in torch
    signal, gate = input.split(input.shape[dim] // 2, dim)  # type: ignore[no-untyped-call]
    gated: Tensor = signal * torch.sigmoid(gate)
    return gated


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:  # noqa: A002
    return input + value * (tensor1 / tensor2)


def _inner(input: Tensor, other: Tensor) -> Tensor:  # noqa: A002
    if not input.ndim or not other.ndim:
        return input * other
    product: Tensor = torch.tensordot(input, other, dims=([-1], [-1]))
    return product


def _vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    return torch.vdot(x, y) if x.ndim == y.ndim == 1 else (x * y).sum(dim)


def _lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:  # noqa: A002
    return (1 - weight) * input + weight * end  # both are weighted; neither is a skip connection


def _pdist(input: Tensor, p: float = 2.0) -> Tensor:  # noqa: A002
    one, other = torch.triu_indices(len(input), len(input), 1, device=input.device)
    distances: Tensor = torch.linalg.vector_norm(input[one] - input[other], p, -1)
    return distances


def _column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t if t.ndim > 1 else t.reshape(-1, 1) for t in tensors], 1)


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    tensors = [t.reshape(1) if t.ndim == 0 else t for t in tensors]
    return torch.cat(tensors, 0 if tensors[0].ndim == 1 else 1)


def _vstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t if t.ndim > 1 else t.reshape(1, -1) for t in tensors], 0)


def _dstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(_at_least(3)(tensors), 2)


def _cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:  # noqa: A002
    """As ``torch.cross``: by default along the first dimension of size three."""
    input, other = _broadcast_tensors(input, other)  # noqa: A001
    dim = list(input.shape).index(3) if dim is None else dim
    forth, back = ((x.roll(-1, dim), x.roll(-2, dim)) for x in (input, other))
    return forth[0] * back[1] - forth[1] * back[0]


def _diff(
    input: Tensor,  # noqa: A002
    n: int = 1,
    dim: int = -1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    given = [part for part in (prepend, input, append) if part is not None]
    result = torch.cat(given, dim) if len(given) > 1 else input
    for _ in range(n):
        length = result.shape[dim] - 1
        result = result.narrow(dim, 1, length) - result.narrow(dim, 0, length)
    return result


def _multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.matmul, tensors)


def _kron(input: Tensor, other: Tensor) -> Tensor:  # noqa: A002
    ndim = max(input.ndim, other.ndim)
    (a, b) = ((1,) * (ndim - x.ndim) + tuple(x.shape) for x in (input, other))
    left = input.reshape([n for length in a for n in (length, 1)])
    right = other.reshape([n for length in b for n in (1, length)])
    return (left * right).reshape([m * n for m, n in zip(a, b, strict=True)])


def _trapezoid(y: Tensor, x: Tensor | None = None, *, dx: float = 1.0, dim: int = -1) -> Tensor:
    length = y.shape[dim] - 1
    if x is not None and x.ndim == 1:
        x = x.reshape([-1] + [1] * (y.ndim - 1 - dim % y.ndim))
    steps = dx if x is None else _diff(x, dim=dim)
    means = (y.narrow(dim, 1, length) + y.narrow(dim, 0, length)) / 2
    return (means * steps).sum(dim)


def _with_mean(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns variances or standard deviations with the means beside them, as ``var_mean`` does."""

    def both(
        input: Tensor,  # noqa: A002
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        **correction: Any,
    ) -> tuple[Tensor, Tensor]:
        if isinstance(dim, bool):
            unbiased, dim = dim, None
        correction = correction or {"correction": int(unbiased)}
        spread: Tensor = getattr(input, name)(dim, keepdim=keepdim, **correction)
        return spread, input.mean(dim, keepdim)

    return both


def _renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:  # noqa: A002
    others = [d for d in range(input.ndim) if d != dim % input.ndim]
    norm = torch.linalg.vector_norm(input, p, others, keepdim=True)
    return torch.where(norm > maxnorm, input / (norm + 1e-7) * maxnorm, input)


def _scatter_reduce(
    input: Tensor,  # noqa: A002
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Tensor:
    """Sums, means or extremes at indices; entries that share an extreme share it equally."""
    given = input if include_self else input.scatter(dim, index, 0)
    if reduce == "sum":
        return given.scatter_add(dim, index, source)
    if reduce not in ("mean", "amax", "amin"):
        raise UnsupportedOperationError(
            f"What the factors of `scatter_reduce` with reduce={reduce!r} get is not known. Sums, "
            "means, the largest and the smallest are."
        )
    own, others = torch.ones_like(input), torch.ones_like(source)
    if not include_self:
        own = own.scatter(dim, index, 0)
    if reduce != "mean":
        with torch.no_grad(), torch._C.DisableTorchFunction():
            top = torch.scatter_reduce(input, dim, index, source, reduce, include_self=include_self)
            own, others = own * (input == top), (source == top.gather(dim, index)).to(source.dtype)
    count = own.scatter_add(dim, index, others).clamp(min=1)
    return (input * own).scatter_add(dim, index, source * others) / count


def in_canonical_words(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps a function so that it also takes NumPy's argument names, as torch functions do."""
    return lambda *args, **kwargs: body(*args, **{ALIASES.get(k, k): a for k, a in kwargs.items()})


def written_into(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps a function so that it reads its first argument, then writes its result into it."""
    return lambda input, *args, **kwargs: input.copy_(body(input.clone(), *args, **kwargs))  # noqa: A006


# Functions without a line in the table, written in functions that have one: functions that hide
# products, and functions that use a tensor only for its shape or type.
WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "cosine_similarity": _cosine_similarity,
    # Each result is made of one of the tensors only.
    "broadcast_tensors": _broadcast_tensors,
    "atleast_1d": _at_least(1),
    "atleast_2d": _at_least(2),
    "atleast_3d": _at_least(3),
    "glu": _glu,
    "addcdiv": _addcdiv,
    "inner": _inner,
    "linalg_vecdot": _vecdot,
    "lerp": _lerp,
    "cross": _cross,
    "linalg_cross": lambda input, other, *, dim=-1: _cross(input, other, dim),  # noqa: A006
    "diff": _diff,
    "linalg_multi_dot": _multi_dot,
    "chain_matmul": lambda *matrices: _multi_dot(matrices),
    "kron": _kron,
    "trapezoid": _trapezoid,
    "trapz": _trapezoid,
    "renorm": _renorm,
    "var_mean": _with_mean("var"),
    "std_mean": _with_mean("std"),
    "hypot": lambda input, other: (input.square() + other.square()).sqrt(),  # noqa: A006
    "zero": lambda input: torch.fill(input, 0),  # noqa: A006
    "pdist": _pdist,
    "scatter_reduce": _scatter_reduce,
    "column_stack": _column_stack,
    "hstack": _hstack,
    "vstack": _vstack,
    "row_stack": _vstack,
    "dstack": _dstack,
    "expand_as": lambda input, other: input.expand(other.shape),  # noqa: A006
    "reshape_as": lambda input, other: input.reshape(other.shape),  # noqa: A006
    "view_as": lambda input, other: input.view(other.shape),  # noqa: A006
    "type_as": lambda input, other: input.to(other.device, other.dtype),  # noqa: A006
}
# Python composites whose inner functions matter: the trace sees their bodies instead of the calls.
COMPOSITES = {
    function: body_of(function)
    for function in (
        F.multi_head_attention_forward,
        F.normalize,
        F.local_response_norm,
        F.multilabel_soft_margin_loss,
        F.triplet_margin_with_distance_loss,
    )
}
