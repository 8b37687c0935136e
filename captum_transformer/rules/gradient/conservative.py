"""The gradient pass of Ali et al. (ICML 2022): parts of the graph are held constant.

Every rule here leaves what an operation computes as it is and changes only what autograd sees of
it. Gradient x input of the resulting graph is then layer-wise relevance propagation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.gradient.call_arguments import called_with, signals_in, with_tensors
from captum_transformer.rules.gradient.gamma import Gamma, favour_positive
from captum_transformer.rules.gradient.norms import hold_denominator
from captum_transformer.rules.gradient.softmax import without_empty_rows
from captum_transformer.trace.functions import describe
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.nested import leaves
from captum_transformer.trace.recognise import Pattern, are_probabilities
from captum_transformer.trace.statistics import is_mean_of
from captum_transformer.trace.tape import Tape


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
            return _attend(call, args, kwargs, pattern) if self.attention_rule else NotImplemented
        if kind is Kind.PRODUCT and self.attention_rule:
            held = _apply_probabilities(call, args, kwargs, name, tape)
            if held is not NotImplemented:
                return held
        if kind is Kind.MUL and self.attention_rule:
            return _weigh(call, args, kwargs, tape)
        if kind is Kind.SAMPLE and self.attention_rule:
            _refuse_places(args, kwargs, tape)
        if kind is Kind.SOFTMAX:
            return without_empty_rows(call, args, kwargs)
        if kind is Kind.PRODUCT and (gamma := self.gammas.get(len(tape.operations))) is not None:
            return favour_positive(gamma, name, args, kwargs)
        if self.layer_norm_rule:
            held = hold_denominator(kind, call, args, kwargs, name=name, hold_mean=self.hold_mean)
            if held is not NotImplemented:
                return held
        if self.hold_mean and kind is Kind.SUB and len(args) == 2 and _subtracts_mean(args, tape):
            return call(args[0], args[1].detach(), **kwargs)
        return NotImplemented


def _attend(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], pattern: Pattern
) -> Any:
    """Attention with its probabilities held.

    With queries and keys held, the fused kernel's backward is all that is needed.
    """
    held = {id(t): t.detach() for t in leaves(Tensor, (args, kwargs)) if id(t) in pattern.held}
    result = with_tensors(kwargs, held)
    if "value" in kwargs:
        # The values of fused attention may be the same tensor as its queries.
        result["value"] = kwargs["value"]
    return call(*with_tensors(args, held), **result)


def _weigh(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tape: Tape
) -> Any:
    """A product of a signal and softmax weights of its tokens, which are held.

    That is attention whose weighted sum is not written as a matrix product (as in MobileViTv2).
    """
    signals = [(tensor, tape.find(tensor)) for tensor in signals_in((args, kwargs), tape)]
    weights = [t for t, value in signals if value is not None and value.weighs_tokens]
    if not weights or len(weights) == len(signals):
        return NotImplemented
    held = {id(tensor): tensor.detach() for tensor in weights}
    if describe(call).inplace and id(args[0]) in held:
        return args[0].copy_(args[0].detach() * args[1])
    return called_with(call, args, kwargs, held)


def _refuse_places(args: tuple[Any, ...], kwargs: dict[str, Any], tape: Tape) -> None:
    """Places that follow from the inputs, as in deformable attention, are no probabilities."""
    if len(signals_in((args[1:], {k: v for k, v in kwargs.items() if k != "input"}), tape)):
        raise UnsupportedOperationError(
            "`grid_sample` reads a signal at places that depend on the inputs, as in deformable "
            "attention: the theory says what attention probabilities get, but not what places do. "
            "With `attention_rule=False` they count as any other part of the gradient."
        )


def _apply_probabilities(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str, tape: Tape
) -> Any:
    """A product with softmax probabilities that were cut up or rearranged: they are held, too."""
    tensors = list(leaves(Tensor, (args, kwargs)))
    values = {id(tensor): tape.find(tensor) for tensor in tensors}
    signals = {key: v for key, v in values.items() if v is not None and not v.learned}
    held = {key for key, value in signals.items() if are_probabilities(value)}
    if len(signals) < 2 or not held:
        return NotImplemented
    if held == set(signals):
        raise UnsupportedOperationError(
            f"`{name}` multiplies softmax probabilities, cut up or rearranged, with one another, "
            f"on tensors of shapes {[tuple(value.shape) for value in signals.values()]}: which of "
            "them weights which can't be told, so they can't be held constant. With "
            "`attention_rule=False` they count as any other part of the gradient."
        )
    constant = {id(t): t.detach() for t in tensors if id(t) in held}
    return called_with(call, args, kwargs, constant)


def _subtracts_mean(args: tuple[Any, ...], tape: Tape) -> bool:
    values = [tape.find(a) if isinstance(a, Tensor) else None for a in args]
    return values[0] is not None and values[1] is not None and is_mean_of(values[1], values[0])
