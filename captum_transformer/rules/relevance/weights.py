"""Products of a signal with a constant matrix, whichever function the model calls."""

from collections.abc import Callable
from dataclasses import replace

from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.kinds import Role
from captum_transformer.trace.nested import mapped
from captum_transformer.trace.operation import Operand, Operation


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
