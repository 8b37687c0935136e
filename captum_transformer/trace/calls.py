"""Calls as the trace runs them: deterministic, and in a form that rules can read."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace.flex import as_attention, flex_attend
from captum_transformer.trace.functions import Function
from captum_transformer.trace.indices import with_tensors
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.writes import that_only_looks

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

# The names of the functions behind indexing with brackets.
_BRACKETS = frozenset({"getitem", "setitem"})
_ATTENTION = Kind.ATTENTION
_REWRITTEN = _BRACKETS | {"to", "batch_norm"}
_BATCH_NORM = inspect.signature(F.batch_norm)


def as_run(
    func: Callable[..., Any], function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """Returns a call in the form in which the trace runs it.

    This switches off everything that makes the forward pass random or dependent on the rest of the
    batch.
    """
    if function.kind is not _ATTENTION and function.name not in _REWRITTEN:
        return func, args, kwargs
    if function.kind is _ATTENTION:
        if function.call is flex_attend:
            return flex_attend, (), as_attention(function.bind(args, kwargs))
        return func, *_without_dropout(function, args, kwargs)
    if function.name in _BRACKETS:
        return func, (args[0], with_tensors(args[1]), *args[2:]), kwargs
    if function.name == "to":
        return func, *_like_another(args, kwargs)
    if func is F.batch_norm:
        bound = dict(_BATCH_NORM.bind(*args, **kwargs).arguments)
        if bound.get("running_mean") is not None:
            return func, (), {**bound, "training": False}
    return func, args, kwargs


def _without_dropout(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    """Returns the given arguments with a dropout probability of zero."""
    parameters, aliases = function.entry.parameters, function.entry.aliases
    given = tuple(
        0.0 if parameters[i : i + 1] == ("dropout_p",) else argument
        for i, argument in enumerate(args)
    )
    named = {
        name: 0.0 if aliases.get(name, name) == "dropout_p" else argument
        for name, argument in kwargs.items()
    }
    return given, named


def _like_another(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Rewrites ``x.to(other)`` as ``x.to(other.device, other.dtype)``, without other's values."""
    others = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, Tensor)]
    if not others:
        return args, kwargs
    (other,) = others
    further = tuple(argument for argument in args[1:] if argument is not other)
    named = {key: argument for key, argument in kwargs.items() if argument is not other}
    return (args[0], other.device, other.dtype, *further), named


def without_inplace(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function with an ``inplace`` argument so that it never writes into its input."""
    signature = inspect.signature(func)

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        return func(**{**bound.arguments, "inplace": False})

    return call


def past_autograd(operation: Operation, tensor: Tensor, *_: Any) -> Any:
    """Runs a call that bypasses autograd: ``data``, an assignment to it, or ``register_hook``."""
    if "hook" in operation.arguments:
        hook = that_only_looks(operation.arguments["hook"])
        return tensor.register_hook(hook)  # type: ignore[no-untyped-call]
    if "source" in operation.arguments:
        raise UnseenOperationError(
            "The model assigns to `.data` of a tensor that depends on the inputs, which hides the "
            "dependence from autograd and from the trace. Use an ordinary in-place "
            "operation such as `tensor.copy_(...)`."
        )
    # The same as `tensor.data`, but writes into the result can be detected.
    return tensor.detach()


def lay_gradient_out(operation: Operation, result: Any) -> None:
    """Gives the gradient of batch normalisation the memory layout of its result.

    On CPUs the derivative is wrong if the gradient has another layout, such as tokens first after
    a convolutional stem, or channels last for a spectrogram.
    """
    if "running_mean" in operation.arguments and result.requires_grad:
        result.register_hook(functools.partial(_laid_out, result.stride()))


def _laid_out(stride: tuple[int, ...], gradient: Tensor) -> Tensor:
    return torch.empty_strided(
        gradient.shape, stride, dtype=gradient.dtype, device=gradient.device
    ).copy_(gradient)
