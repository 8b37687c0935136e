"""The uniform rule for products of signals (Achtibat et al., ICML 2024): each gets its share."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from captum_transformer.rules.propagate import growth
from captum_transformer.trace.kinds import Role
from captum_transformer.trace.nested import leaves, mapped
from captum_transformer.trace.operation import Operand, Operation


def share(operation: Operation) -> Any:
    """Runs a product so that each factor that depends on the inputs gets the same share.

    A term that is added to the product gets all of its own part.
    """
    parts = shares_of(operand for operand, _ in operation.traced())
    return divided(operation, parts) if len(parts) > 1 else NotImplemented


def shares_of(operands: Iterable[Operand]) -> dict[Operand, int]:
    """Returns the divisors of the gradients of a product's factors."""
    factors = [operand for operand in operands if operand.role is not Role.BIAS]
    return dict.fromkeys(factors, len(factors))


def share_attention(operation: Operation) -> Any:
    """Runs fused attention as two products; the softmax between them keeps its gradient."""
    return divided(operation, parts_of_attention(operation))


def parts_of_attention(operation: Operation) -> dict[Operand, int]:
    """Returns the divisors of the gradients of fused attention's signals."""
    signals = {operand for operand, _ in operation.traced()}
    query, key, value, mask = map(operation.argument, ("query", "key", "value", "attn_mask"))
    scores = 2 if {query, key} <= signals else 1
    outputs = 2 if value in signals and signals - {value} else 1
    parts = {query: scores * outputs, key: scores * outputs, value: outputs, mask: outputs}
    return {operand: parts.get(operand, 1) for operand in signals}


def share_by_degree(operation: Operation) -> Any:
    """Runs a product of n entries so that each gets an n-th part; a variance is one of n = 2.

    The degree n is how much faster the output grows than its entries.
    """
    grown = growth(operation, [operand.tensor.detach() for operand, _ in operation.traced()])
    result = operation.run(lambda operand: operand.tensor)
    for output, of_output in zip(leaves(Tensor, result), grown, strict=True):
        degree = torch.where(output == 0, 1.0, of_output / output).detach()
        _divide_gradient(output, degree)
    # The gradient with respect to the result itself is not divided.
    return mapped(lambda output: output.view_as(output), Tensor, result)


def divided(
    operation: Operation, parts: Mapping[Operand, int], held: Collection[Operand] = ()
) -> Any:
    """Runs an operation so that the gradient of some operands is divided by a number.

    Args:
        operation: the operation.
        parts: the numbers.
        held: operands that are held constant.
    """

    def tensor(operand: Operand) -> Tensor:
        if operand in held:
            return operand.tensor.detach()
        number = parts.get(operand, 1)
        if number == 1:
            return operand.tensor
        alias = operand.tensor.view_as(operand.tensor)
        return _divide_gradient(alias, number)

    return operation.run(tensor)


def _divide_gradient(tensor: Tensor, by: int | Tensor) -> Tensor:
    """Divides a tensor's gradient by a hook; it may be None if only other outputs have one."""
    tensor.register_hook(lambda gradient: None if gradient is None else gradient / by)  # type: ignore[no-untyped-call]
    return tensor
