"""The softmax of a query that may attend to nothing."""

from typing import Any

from torch import Tensor

from captum_transformer.trace.operation import Operation


def without_empty_rows(operation: Operation) -> Any:
    """Runs a softmax whose rows without any key have a gradient of zero.

    Where all scores are minus infinity, as for padding, the probabilities are no numbers. Models
    overwrite them afterwards, which puts the output right, but not the gradient: zero times no
    number is none.
    """
    ((scores, _),) = operation.traced()
    alias = scores.tensor.view_as(scores.tensor)
    result: Tensor = operation.run(lambda o: alias if o is scores else o.tensor)
    probabilities = result.detach()

    def cleared(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(probabilities.isnan(), 0.0)

    alias.register_hook(cleared)  # type: ignore[no-untyped-call]
    return result
