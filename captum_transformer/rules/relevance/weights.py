"""Products of a signal with a constant matrix, whichever function the model calls."""

from typing import NamedTuple

from torch import Tensor

from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operand, Operation

# Where the signal, the matrix and what is added to their product are among a function's arguments.
_PLACES: dict[str, tuple[tuple[int, str], tuple[int, str], tuple[int, str] | None]] = {
    "linear": ((0, "input"), (1, "weight"), (2, "bias")),
    "addmm": ((1, "mat1"), (2, "mat2"), (0, "input")),
    "matmul": ((0, "input"), (1, "other"), None),
    "mm": ((0, "input"), (1, "mat2"), None),
}


class Weighting(NamedTuple):
    """A signal whose rows are multiplied by a constant matrix.

    Attributes:
        signal: the rows: ``(..., inputs)``.
        weights: the operand that is the matrix, or its transpose.
        bias: what is added to each product, ``(outputs)``, if anything is.
        by_input: whether the rows of ``weights`` belong to inputs, and not to outputs.
    """

    signal: Operand
    weights: Operand
    bias: Operand | None
    by_input: bool

    def matrix(self) -> Tensor:
        """The weights: ``(outputs, inputs)``."""
        weights = in_full(self.weights)
        return weights.T if self.by_input else weights


def weighting(operation: Operation) -> Weighting | None:
    """What an operation multiplies by a constant matrix; None if it does nothing of the kind."""
    if operation.name not in _PLACES or operation.kwargs.keys() & {"alpha", "beta"}:
        return None
    signal, weights, bias = (
        None if place is None else operation.argument(*place) for place in _PLACES[operation.name]
    )
    constants = [operand for operand in (weights, bias) if operand is not None]
    dims = [len(operand.size) for operand in constants]
    if signal is None or weights is None or dims not in ([2], [2, 1]):
        return None
    if signal.value is None or any(operand.value is not None for operand in constants):
        return None
    return Weighting(signal, weights, bias, by_input=operation.name != "linear")
