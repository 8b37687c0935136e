"""An operation's arguments, with other tensors in the place of some."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from captum_transformer.trace.nested import leaves, mapped
from captum_transformer.trace.tape import Tape


def with_tensors(arguments: Any, replaced: Mapping[int, Tensor]) -> Any:
    """The (nested) arguments; tensors are replaced by their identity."""
    return mapped(lambda tensor: replaced.get(id(tensor), tensor), Tensor, arguments)


def called_with(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    replaced: Mapping[int, Tensor],
) -> Any:
    """Runs an operation with other tensors in the place of some, which are told by identity."""
    return call(*with_tensors(args, replaced), **with_tensors(kwargs, replaced))


def is_signal(argument: Any, tape: Tape) -> bool:
    """Whether the inputs reach a floating point tensor."""
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return False
    value = tape.find(argument)
    return value is not None and not value.learned


def signals_in(arguments: Any, tape: Tape) -> list[Tensor]:
    """The tensors among (nested) arguments that the inputs reach, token ids aside."""
    return [tensor for tensor in leaves(Tensor, arguments) if is_signal(tensor, tape)]


def tensor_first(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a function of torch, which calls its first one ``input``."""
    return {"tensor" if key == "input" else key: value for key, value in kwargs.items()}


def as_function_of(
    tensor: Tensor, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Tensor], Any]:
    """The operation as a function of one of its arguments."""

    def run(instead: Tensor) -> Any:
        return called_with(call, args, kwargs, {id(tensor): instead})

    return run
