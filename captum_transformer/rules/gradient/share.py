"""The uniform rule for products of signals (Achtibat et al., ICML 2024): each gets its share."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from captum_transformer.trace.kinds import Role
from captum_transformer.trace.operation import Operand, Operation


def share(operation: Operation) -> Any:
    """Runs a product of which each factor that the inputs reach gets the same share.

    What is added to the product gets all of its own part.
    """
    factors = [operand for operand, _ in operation.traced() if operand.role is not Role.BIAS]
    if len(factors) < 2:
        return NotImplemented
    return _divided(operation, dict.fromkeys(factors, len(factors)))


def share_attention(operation: Operation) -> Any:
    """Runs fused attention: two products, the softmax with its own gradient between them."""
    signals = {operand for operand, _ in operation.traced()}
    query, key, value, mask = map(operation.argument, ("query", "key", "value", "attn_mask"))
    scores = 2 if {query, key} <= signals else 1
    outputs = 2 if value in signals and signals - {value} else 1
    parts = {query: scores * outputs, key: scores * outputs, value: outputs, mask: outputs}
    return _divided(operation, {operand: parts[operand] for operand in signals})


def _divided(operation: Operation, parts: Mapping[Operand, int]) -> Any:
    """Runs an operation so that the gradient of some operands is divided by a number."""

    def tensor(operand: Operand) -> Tensor:
        number = parts.get(operand, 1)
        if number == 1:
            return operand.tensor
        alias = operand.tensor.view_as(operand.tensor)
        alias.register_hook(lambda gradient: gradient / number)  # type: ignore[no-untyped-call]
        return alias

    return operation.run(tensor)
