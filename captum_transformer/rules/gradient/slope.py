"""Rules that replace an operation's slope: fused norms (the LN rule), activations (f(x) / x).

The forward pass runs the operation's own kernel and also computes the slope, so the backward pass
needs neither the input nor the output, and a model may write into both.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_transformer.rules.gradient.hold import MARK, refused, with_held
from captum_transformer.trace.gates import (
    constant_term,
    is_activated,
    is_of_one_entry,
    steps_with_numbers,
)
from captum_transformer.trace.kinds import Form, Kind
from captum_transformer.trace.norms import Normalisation, normalisation
from captum_transformer.trace.numeric import accumulation_dtype, by_rows, ratio
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.statistics import (
    is_logarithm_of_softmax,
    softmax_dim,
    subtracts_unknown,
    sums_exponentials,
    takes_number,
)


def identity(operation: Operation, *, epsilon: float = 0.0) -> Any:
    """The identity rule for activations (Achtibat et al., ICML 2024): the slope is f(x) / x.

    Args:
        operation: the activation.
        epsilon: is added to x where x is the divisor.
    """
    (signal, value), *others = operation.traced()
    if others:
        return refused(
            operation, "shares of several signals are only defined for sums, products and choices"
        )
    of_softmax = softmax_dim(operation) is not None or is_logarithm_of_softmax(operation)
    if not signal.dtype.is_floating_point or of_softmax:
        return NotImplemented  # one function with the operations before it: keeps its gradient
    before = value.operation if operation.form is Form.EXPONENTIAL else None
    of_difference = before is not None and subtracts_unknown(before)
    if of_difference or (operation.form is Form.LOGARITHM and sums_exponentials(value)):
        return refused(
            operation,
            "with the operations before it, it may be a softmax written by hand, or its logarithm, "
            "and the rule is for the whole of one",
            "Call `torch.softmax`, `torch.log_softmax` or `torch.logsumexp` if it is; ",
        )
    steps = steps_with_numbers(value)
    for step in (*steps, operation):
        step.activates = True
    return _Activation.apply(signal.tensor, operation, constant_term(steps), epsilon)


def identity_of_sum(operation: Operation) -> Any:
    """Treats a number added to an activation as a part of it, as in ``(1 + tanh(x / 2)) / 2``."""
    ((signal, value), *others) = operation.traced()
    if others or not takes_number(operation) or not is_activated(value):
        return NotImplemented
    operation.activates = True
    return _Activation.apply(signal.tensor, operation, None, 0.0)


def refuse_of_one_entry(operation: Operation) -> Any:
    """Refuses a softmax of one signal and constants: it is an activation that no rule knows.

    Without constants it is one, whatever the entry, and is held.
    """
    if not operation.traced() or not is_of_one_entry(operation):
        return NotImplemented
    ((signal, value),) = operation.traced()
    dim = operation.dim(len(value.shape))
    if dim is not None and value.shape[dim] == 1 and operation.kind is not Kind.SMOOTH_MAXIMUM:
        return with_held(operation, [signal])
    return refused(
        operation,
        "it is of one entry of a signal, joined with constants: an activation written by hand, and "
        "the rule is for the whole",
        "Call `torch.sigmoid`, `F.logsigmoid` or `F.softplus`; ",
    )


def identity_of_scores(operation: Operation) -> Any:
    """The identity rule for a function of the model's own that changes attention scores."""
    scoring = operation.argument("scoring")
    if scoring is not None:
        scoring.by_secant = True
    return NotImplemented


def hold_deviation(operation: Operation, *, hold_mean: bool = False) -> Any:
    """The LN rule (Ali et al., eq. 12) for fused norms: holds the divisor constant.

    Args:
        operation: a norm.
        hold_mean: hold the mean that it subtracts, too.
    """
    norm, signal = normalisation(operation), operation.argument("input")
    if norm is None:
        return refused(operation, "what it divides by is not known", "")
    if any(operand is not signal for operand, _ in operation.traced()):
        return refused(
            operation,
            "its weights depend on the inputs",
            "Normalise without weights, then multiply and add them: a product and a sum have "
            "rules; ",
        )
    if norm.by_constants:
        return NotImplemented
    return _HeldNorm.apply(signal.tensor, operation, norm, hold_mean)


def without_empty_rows(operation: Operation) -> Any:
    """Runs a softmax whose rows without any key have a gradient of zero.

    Where all scores are minus infinity, as for padding, the probabilities are NaN. Models overwrite
    them afterwards, which corrects the output, but not the gradient: zero times NaN is NaN.
    """
    ((scores, value),) = operation.traced()
    dim = operation.dim(len(value.shape))
    alias = scores.tensor.view_as(scores.tensor)
    result: Tensor = operation.run(lambda o: alias if o is scores else o.tensor)
    probabilities = result.detach()
    if dim is not None and probabilities.numel():
        # One entry of a row is enough: if it is NaN, all of them are.
        probabilities = probabilities.narrow(dim, 0, 1)
    empty = probabilities.isnan()

    def cleared(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(empty, 0.0)

    alias.register_hook(cleared)  # type: ignore[no-untyped-call]
    return result


def _on(tensor: Tensor, operation: Operation) -> Any:
    """Runs an operation with another tensor in place of its only signal."""
    ((signal, _),) = operation.traced()
    result = operation.run(lambda operand: tensor if operand is signal else operand.tensor)
    # Autograd forbids writes into a view that a Function returns.
    return result.clone() if isinstance(result, Tensor) and result._is_view() else result


class _Activation(torch.autograd.Function):
    """An activation whose backward multiplies by f(x) / x, and by zero where x is zero.

    The signal that it gets is x plus a constant.
    """

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, operation: Operation, constant: Tensor | None, epsilon: float
    ) -> Tensor:
        output: Tensor = _on(signal, operation)
        # In half precision a slope may overflow; bfloat16 has the range of float32.
        kept = torch.promote_types(signal.dtype, torch.bfloat16)
        dtype = accumulation_dtype(signal.dtype)
        largest = torch.finfo(dtype).max

        def slope(result: Tensor, own: Tensor, *constant: Tensor) -> Tensor:
            own = own.to(dtype)
            for term in constant:
                own = own - term
            found = ratio(result.to(dtype), own, epsilon)
            return found.clamp_(-largest, largest).to(kept)

        # A constant may be on the CPU.
        terms = () if constant is None else (constant.to(signal.device).expand_as(signal),)
        ctx.save_for_backward(by_rows(slope, output, signal, *terms), MARK)
        ctx.dtype = signal.dtype
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope, _ = ctx.saved_tensors
        largest = torch.finfo(ctx.dtype).max
        gradient = (gradients[0].to(slope.dtype) * slope).clamp(-largest, largest)
        return gradient.to(ctx.dtype), None, None, None


class _HeldNorm(torch.autograd.Function):
    """A norm whose backward treats the deviation, and optionally the mean, as constants."""

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, operation: Operation, norm: Normalisation, hold_mean: bool
    ) -> Any:
        output = _on(signal, operation)
        weight: Operand | None = operation.argument("weight")
        scale = None if weight is None else weight.tensor.detach().reshape(norm.scale)
        ctx.save_for_backward(norm.inverse_deviation(signal), scale, MARK)
        ctx.norm, ctx.centre = norm, norm.centred and not hold_mean
        ctx.shape, ctx.dtype = signal.shape, signal.dtype
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(*output[1:])  # the statistics, as in torch
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inverse, scale, _ = ctx.saved_tensors
        norm: Normalisation = ctx.norm
        slope = gradients[0].to(inverse.dtype)
        if scale is not None:
            slope = slope * scale
        slope = norm.in_rows(slope) * inverse
        if ctx.centre:
            slope -= slope.mean(-1, keepdim=True)
        return norm.from_rows(slope, ctx.shape).to(ctx.dtype), None, None, None


hold_deviation_and_mean = partial(hold_deviation, hold_mean=True)
