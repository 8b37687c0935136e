"""The uniform rule for products of signals (Achtibat et al., ICML 2024): each gets its share."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_transformer.rules.gradient.call_arguments import called_with, is_signal, signals_in
from captum_transformer.trace.functions import describe
from captum_transformer.trace.kinds import CONVOLUTIONS, Kind
from captum_transformer.trace.tape import Tape

_PRODUCTS = CONVOLUTIONS | {Kind.MUL, Kind.PRODUCT, Kind.SAMPLE}
# What is added to a product in the same function, by its place and its name.
_ADDED = {
    **dict.fromkeys(("addmm", "baddbmm", "addcmul"), (0, "input")),
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), (2, "bias")),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (2, "bias")),
    "bilinear": (3, "bias"),
}


def uniform_rule(
    kind: Kind,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    name: str,
    tape: Tape,
) -> Any:
    """Runs a product of which each factor that the inputs reach gets the same share.

    Returns:
        The operation's result; ``NotImplemented`` if fewer than two factors are signals.
    """
    if kind not in _PRODUCTS:
        return NotImplemented
    place, key = _ADDED.get(name, (None, None))
    terms = (
        [argument for i, argument in enumerate(args) if i != place],
        [argument for k, argument in kwargs.items() if k != key],
    )
    factors = signals_in(terms, tape)
    if len(factors) < 2:
        return NotImplemented

    if describe(call).inplace and any(t is args[0] for t in factors):
        product = call(args[0].clone(), *args[1:], **kwargs)
        return args[0].copy_(_divided(product, len(factors)))
    shared = {id(t): _divided(t.view_as(t), len(factors)) for t in factors}
    return called_with(call, args, kwargs, shared)


def attend(call: Callable[..., Any], kwargs: dict[str, Any], tape: Tape) -> Any:
    """Runs fused attention: two products, the softmax with its own gradient between them."""
    signals = {key for key, argument in kwargs.items() if is_signal(argument, tape)}
    scores = 2 if {"query", "key"} <= signals else 1
    outputs = 2 if "value" in signals and signals - {"value"} else 1
    parts = {"query": scores * outputs, "key": scores * outputs, "value": outputs}
    parts["attn_mask"] = outputs
    shared = {k: _divided(kwargs[k].view_as(kwargs[k]), parts[k]) for k in signals}
    return call(**{**kwargs, **shared})


def _divided(tensor: Tensor, parts: int) -> Tensor:
    """The tensor, whose gradient is divided from now on."""
    if parts > 1:
        tensor.register_hook(lambda gradient: gradient / parts)  # type: ignore[no-untyped-call]
    return tensor
