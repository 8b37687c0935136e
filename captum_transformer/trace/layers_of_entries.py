"""Linear layers that are written as entries, which are multiplied with weights and summed."""

import torch
from torch import Tensor

from captum_transformer.trace.features import is_linear_layer
from captum_transformer.trace.functions import Function
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.products import summed_product


def repeats_signal(operation: Operation) -> bool:
    """Whether it multiplies each entry of its only signal with several entries of a constant."""
    if len(operation.operands) != 2 or len(operation.traced()) != 1:
        return False
    one, other = operation.operands
    signal, constant = (one, other) if other.value is None else (other, one)
    ahead = len(constant.size) - len(signal.size)
    own = (1,) * ahead + tuple(signal.size)[max(-ahead, 0) :]
    return any(n == 1 < length for n, length in zip(own, constant.size, strict=True))


def layer_of_entries(operation: Operation, ndim: int | None = None) -> Operation | None:
    """Returns a sum of a signal's features times weights as a product, or None for other sums.

    An example is ``(x[..., None] * weight).sum(-2)``. A sum over tokens, as by a masked mean, is no
    such product.

    Args:
        operation: the sum.
        ndim: the number of dimensions of its output, or None before it runs.
    """
    found = summed_product(operation, ndim)
    if found is None:
        return None
    made, (factors, letters, output, _) = found
    if operation.traced()[0][1].operation is not made:
        return None
    dim = operation.along(max(len(factor.size) for factor in factors))
    keepdim = bool(operation.argument("keepdim"))

    reduce = torch.mean if operation.kind is Kind.MEAN else torch.sum

    def call(one: Tensor, other: Tensor) -> Tensor:
        return reduce(one * other, dim, keepdim=keepdim)

    layer = operation.changed(
        function=Function("weighted sum", Kind.PRODUCT, call),
        kind=Kind.PRODUCT,
        args=factors,
        kwargs={},
        operands=list(factors),
        arguments={"operands": factors, "equation": f"{','.join(letters)}->{output}"},
        call=call,
        refusal=made.refusal or operation.refusal,
        refused=made.refused or operation.refused,
    )
    return layer if is_linear_layer(layer) else None
