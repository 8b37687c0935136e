"""The softmax of a query that may attend to nothing."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_transformer.rules.gradient.call_arguments import called_with


def without_empty_rows(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Runs a softmax whose rows without any key have a gradient of zero.

    Where all scores are minus infinity, as for padding, the probabilities are no numbers. Models
    overwrite them afterwards, which puts the output right, but not the gradient: zero times no
    number is none.
    """
    scores = args[0] if args else kwargs["input"]
    if not scores.requires_grad:
        return NotImplemented
    alias = scores.view_as(scores)
    result: Tensor = called_with(call, args, kwargs, {id(scores): alias})
    probabilities = result.detach()

    def cleared(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(probabilities.isnan(), 0.0)

    alias.register_hook(cleared)
    return result
