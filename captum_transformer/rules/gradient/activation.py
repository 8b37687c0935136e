"""The identity rule for activations (Achtibat et al., ICML 2024): the slope is f(x) / x."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer.rules.gradient.call_arguments import as_function_of, called_with, signals_in
from captum_transformer.trace.functions import describe
from captum_transformer.trace.gates import gated_scale
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import accumulation_dtype, ratio
from captum_transformer.trace.tape import Tape

EPSILON = 1e-10


def identity_rule(
    kind: Kind,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    name: str,  # noqa: ARG001
    tape: Tape,
) -> Any:
    """Runs an activation, or the last step of one that is written in Python.

    Returns:
        The operation's result; ``NotImplemented`` if it is no activation.
    """
    if kind is Kind.MUL:
        return _gated(call, args, kwargs, tape)
    if kind is not Kind.ENTRYWISE:
        return NotImplemented
    signals = signals_in((args, kwargs), tape)
    return _activate(call, args, kwargs, signals[0]) if len(signals) == 1 else NotImplemented


def _gated(call: Callable[..., Any], args: Any, kwargs: dict[str, Any], tape: Tape) -> Any:
    """A product with a gate that is made of the signal alone."""
    factors = signals_in((args, kwargs), tape)
    if len(factors) == 2:
        for signal, gate in (factors, factors[::-1]):
            x, made_of_x = tape.find(signal), tape.find(gate)
            scale = None if x is None or made_of_x is None else gated_scale(x, made_of_x)
            if scale is not None:
                return _activate(call, args, kwargs, signal, scale)
    return NotImplemented


def _activate(
    call: Callable[..., Any], args: Any, kwargs: dict[str, Any], signal: Tensor, scale: Any = 1.0
) -> Any:
    """Runs f(x), of which the signal is a multiple of x by the given scale."""
    if not describe(call).inplace and not describe(call).bind(args, kwargs).get("inplace"):
        run = as_function_of(signal, call, args, kwargs)
        return _Activation.apply(signal, run, EPSILON * scale)
    written = args[0] if args else kwargs["input"]
    fresh = written.detach().clone()

    def run_on_copy(x: Tensor) -> Any:
        return called_with(call, args, kwargs, {id(signal): x, id(written): fresh})

    return written.copy_(_Activation.apply(signal.clone(), run_on_copy, EPSILON * scale))


class _Activation(torch.autograd.Function):
    """An activation as it is; its backward multiplies by f(x) / x, and by zero where x is zero."""

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, run: Callable[[Tensor], Tensor], epsilon: float | Tensor
    ) -> Tensor:
        output = run(signal)
        ctx.save_for_backward(signal, output)
        ctx.epsilon = epsilon
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        signal, output = ctx.saved_tensors
        dtype = accumulation_dtype(signal.dtype)
        slope = ratio(output.to(dtype), signal.to(dtype), ctx.epsilon)
        largest = torch.finfo(signal.dtype).max
        gradient = (gradients[0].to(dtype) * slope).clamp(-largest, largest)
        return gradient.to(signal.dtype), None, None
