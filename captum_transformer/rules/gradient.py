"""The gradient pass of Ali et al. (ICML 2022): parts of the graph are held constant.

Every rule here leaves what an operation computes as it is and changes only what autograd sees of
it. Gradient x input of the resulting graph is then layer-wise relevance propagation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.functions import Kind
from captum_transformer.trace.recognise import Pattern
from captum_transformer.trace.statistics import is_mean_of, negative_exponent
from captum_transformer.trace.tape import Tape


@dataclass(frozen=True)
class Gamma:
    """The LRP-gamma rule for one linear layer.

    Attributes:
        gamma: how much the positive weights are favoured.
        keeps_output: whether the layer still returns what it did without the rule.
    """

    gamma: float
    keeps_output: bool


@dataclass(frozen=True)
class ConservativeRule:
    """The AH rule, the LN rule and LRP-gamma (Ali et al., eq. 11-13).

    Attributes:
        attention_rule: hold the attention probabilities constant (AH).
        layer_norm_rule: hold what divides the signal in a norm constant (LN).
        hold_mean: hold the mean that a LayerNorm subtracts constant, too.
        gammas: LRP-gamma for linear layers, by the place of their operation on the tape.
    """

    attention_rule: bool
    layer_norm_rule: bool
    hold_mean: bool
    gammas: Mapping[int, Gamma]

    def __call__(
        self,
        kind: Kind,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        name: str,
        pattern: Pattern | None,
        tape: Tape,
    ) -> Any:
        """See `ForwardRule`."""
        if pattern is not None:
            if not self.attention_rule:
                return NotImplemented
            return call(*_held(args, pattern.held), **_held(kwargs, pattern.held))
        if kind is Kind.LINEAR and (gamma := self.gammas.get(len(tape.operations))) is not None:
            return _gamma(gamma, name, args, kwargs)
        if self.layer_norm_rule:
            held = self._norm(kind, call, args, kwargs, name)
            if held is not NotImplemented:
                return held
        if self.hold_mean and kind is Kind.SUB and len(args) == 2 and _subtracts_mean(args, tape):
            return call(args[0], args[1].detach(), **kwargs)
        return NotImplemented

    def _norm(
        self, kind: Kind, call: Callable[..., Any], args: Any, kwargs: dict[str, Any], name: str
    ) -> Any:
        if kind is Kind.DIV and len(args) == 2 and isinstance(args[1], Tensor):
            return call(args[0], args[1].detach(), **kwargs)
        if kind is Kind.RECIPROCAL or (name == "pow" and negative_exponent(args)):
            output = call(*args, **kwargs)
            return output.detach_() if args and output is args[0] else output.detach()
        if name == "layer_norm":
            return _layer_norm(self.hold_mean, *args[:5], **_tensor_first(kwargs))
        if name == "rms_norm":
            return _rms_norm(*args, **_tensor_first(kwargs))
        if name == "group_norm":
            return _group_norm(self.hold_mean, *args[:5], **_tensor_first(kwargs))
        return NotImplemented


def _tensor_first(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Torch calls its first argument ``input``."""
    return {"tensor" if key == "input" else key: value for key, value in kwargs.items()}


def _subtracts_mean(args: tuple[Any, ...], tape: Tape) -> bool:
    values = [tape.find(a) if isinstance(a, Tensor) else None for a in args]
    return values[0] is not None and values[1] is not None and is_mean_of(values[1], values[0])


def _held(arguments: Any, held: frozenset[int]) -> Any:
    """The arguments with some tensors detached.

    With queries and keys held, the fused kernel's backward is all that is needed.
    """
    if isinstance(arguments, Tensor):
        return arguments.detach() if id(arguments) in held else arguments
    if isinstance(arguments, dict):
        # The values of fused attention may be the same tensor as its queries.
        return {k: v if k == "value" else _held(v, held) for k, v in arguments.items()}
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(_held(argument, held) for argument in arguments)
    return arguments


def _gamma(gamma: Gamma, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if name == "linear":
        return _linear_gamma(gamma, *args, **_tensor_first(kwargs))
    if kwargs:
        raise UnsupportedOperationError(
            f"LRP-gamma has no rule for `{name}` with {sorted(kwargs)}; use gamma=0."
        )
    bias, tensor, weight = args
    return _linear_gamma(gamma, tensor, weight.T, bias)


def _linear_gamma(
    gamma: Gamma, tensor: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    favoured = weight.detach() + gamma.gamma * weight.detach().clamp(min=0)
    shift = None if bias is None else bias.detach() + gamma.gamma * bias.detach().clamp(min=0)
    output = F.linear(tensor, favoured, shift)
    if not gamma.keeps_output:
        return output
    plain = F.linear(tensor.detach(), weight.detach(), None if bias is None else bias.detach())
    held = output.detach()
    slope = torch.where(held == 0, torch.zeros_like(held), plain / held)
    return plain + (output - held) * slope


class _HeldLayerNorm(torch.autograd.Function):
    """LayerNorm, one fused forward; its backward takes the standard deviation as a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        normalized_shape: tuple[int, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        hold_mean: bool,
    ) -> Tensor:
        output, _, inverse_deviation = torch.native_layer_norm(
            tensor, normalized_shape, weight, bias, eps
        )
        ctx.save_for_backward(inverse_deviation, weight)
        ctx.dims = tuple(range(-len(normalized_shape), 0))
        ctx.hold_mean = hold_mean
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inverse_deviation, weight = ctx.saved_tensors
        (gradient,) = gradients
        scaled = gradient * inverse_deviation
        if weight is not None:
            scaled = scaled * weight
        if not ctx.hold_mean:
            scaled = scaled - scaled.mean(ctx.dims, keepdim=True)
        return scaled.to(gradient.dtype), None, None, None, None, None


def _layer_norm(
    hold_mean: bool,
    tensor: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    shape = tuple(normalized_shape)
    if torch.is_autocast_enabled(tensor.device.type):
        tensor = tensor.float()
    with torch.autocast(tensor.device.type, enabled=False):
        held = [None if p is None else p.detach().to(tensor.dtype) for p in (weight, bias)]
        return _HeldLayerNorm.apply(tensor, shape, *held, eps, hold_mean)


def _rms_norm(
    tensor: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    full = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    eps = torch.finfo(full.dtype).eps if eps is None else eps
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    inverse = torch.rsqrt(full.detach().square().mean(dims, keepdim=True) + eps)
    output = full * inverse if weight is None else full * inverse * weight
    return output.to(tensor.dtype)


def _group_norm(
    hold_mean: bool,
    tensor: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    groups = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    groups = groups.reshape(tensor.shape[0], num_groups, -1)
    mean = groups.mean(-1, keepdim=True)
    inverse = torch.rsqrt(groups.detach().var(-1, correction=0, keepdim=True) + eps)
    centred = groups - (mean.detach() if hold_mean else mean)
    output: Tensor = (centred * inverse).reshape(tensor.shape)
    shape = (1, -1, *[1] * (tensor.ndim - 2))
    if weight is not None:
        output = output * weight.reshape(shape)
    if bias is not None:
        output = output + bias.reshape(shape)
    return output.to(tensor.dtype)
