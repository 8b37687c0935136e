"""Linear layers that are written as entries, which are multiplied with weights and summed."""

from captum_transformer.trace.features import is_linear_layer
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.products import as_product, summed_product


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
    layer = as_product(operation, made, factors, f"{','.join(letters)}->{output}")
    return layer if is_linear_layer(layer) else None
