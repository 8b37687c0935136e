"""Products that are traced as the simpler operations that they are made of.

A product that is summed over nothing is one of entries, as by ``*``, and what is added to a product
of several signals is added, as by ``+``. So rules meet these in one form, however they are written.
"""

import functools
import operator
from collections.abc import Callable

import torch
from torch import Tensor

from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation


def written_out(operation: Operation) -> Callable[[], Tensor] | None:
    """Returns a function that computes a product by simpler operations, or None if it is simple.

    Args:
        operation: the operation, before it runs.
    """
    if operation.kind is not Kind.PRODUCT or "out" in operation.kwargs:
        return None
    product = operation.contraction()
    if product is None or len(product.factors) < 2:
        return None
    signals = [factor for factor in product.factors if factor.value is not None]
    of_entries = not any(product.summed(factor) for factor in product.factors)
    adds = operation.function.entry.parameters[:1] == ("bias",) and len(signals) > 1
    added = product.addend if adds or of_entries else None
    if not of_entries and added is None:
        return None

    def run() -> Tensor:
        result = _of_entries(product) if of_entries else _summed(product)
        alpha = operation.argument("alpha", operation.argument("value", 1))
        result = result if alpha == 1 else result * alpha
        if added is None:
            return result
        given, beta = added.given, operation.argument("beta", 1)
        if beta:  # with a factor of zero, not even infinities count
            result = (given if beta == 1 else given * beta) + result
        return given.copy_(result) if operation.function.inplace else result

    return run


def _of_entries(product: Contraction) -> Tensor:
    """Multiplies factors whose dimensions are in the output's order."""
    factors = []
    for factor, letters in zip(product.factors, product.letters, strict=True):
        tensor, own = factor.given, [c for c in product.output if c in letters]
        if list(letters) != own:
            tensor = tensor.permute([letters.index(c) for c in own])
        first = product.output.index(own[0]) if own else 0
        for dim, c in enumerate(product.output[first:]):
            if c not in letters:
                tensor = tensor.unsqueeze(dim)
        factors.append(tensor)
    result: Tensor = functools.reduce(operator.mul, factors)
    return result


def _summed(product: Contraction) -> Tensor:
    left, right = (factor.given for factor in product.factors)
    if len(product.summed(product.factors[0])) == 1:
        return left @ right
    return torch.einsum(f"{','.join(product.letters)}->{product.output}", left, right)
