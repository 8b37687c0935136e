"""Raises the errors of operations that a method's rules refuse, if relevance reaches them."""

from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.value import Value


def refuse_reached(forward: TracedForward, selected: Tensor, score: Value) -> None:
    """Raises an error if relevance reaches an operation that the rules refuse."""
    for operation in forward.tape.operations:
        if operation.refusal is None:
            continue
        values = [value for value in operation.outputs if value is not None]
        if any(score.descends_from(value) and not value.learned for value in values):
            gradients = forward.gradients(selected, operation.refused)
            reached = "whether relevance reaches an operation that is refused"
            if any(g is not None and truth(g.any(), reached) for g in gradients):
                raise operation.refusal
