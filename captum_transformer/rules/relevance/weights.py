"""Products of a signal with a constant matrix, whichever function the model calls."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.kinds import Role
from captum_transformer.trace.nested import mapped
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operand, Operation


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
    product = operation.contraction()
    if product is None or len(product.factors) != 2 or len(operation.traced()) != 1:
        return None
    scaled = operation.argument("alpha", 1) != 1 or operation.argument("beta", 1) != 1
    signal, weights = product.factors
    rows, matrix = product.letters
    if signal.value is None or not rows or len(matrix) != 2 or scaled:
        return None
    if product.addend is not None and len(product.addend.size) != 1:
        return None
    by_input = matrix[0] == rows[-1]
    new = matrix[by_input]
    if rows[-1] not in matrix or product.output != rows[:-1] + new:
        return None
    return Weighting(signal, weights, product.addend, by_input)


def applies_weights(product: Contraction, signal: Operand) -> bool:
    """Whether constants of a product weight what it sums up of a signal; divisors aside."""
    summed = {product.of(signal)[dim] for dim in product.summed(signal)}
    return any(
        factor.value is None
        and factor.role is not Role.STATISTIC
        and not summed.isdisjoint(letters)
        for factor, letters in zip(product.factors, product.letters, strict=True)
    )


def exchanged(operation: Operation, change: Callable[[Operand], Operand]) -> Operation:
    """The operation on other operands: a constant in the place of a signal, for one."""
    new = {operand: change(operand) for operand in operation.operands}
    args, kwargs, arguments = (
        mapped(new.__getitem__, Operand, nested)
        for nested in (operation.args, operation.kwargs, operation.arguments)
    )
    return replace(
        operation,
        args=args,
        kwargs=kwargs,
        arguments=arguments,
        operands=list(new.values()),
        _traced=None,
        _contraction=None,
    )
