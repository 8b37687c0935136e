"""Token ids that are looked up in a constant table, in every spelling."""

from torch import Tensor

from captum_transformer.trace.nested import leaves
from captum_transformer.trace.operation import Operand, Operation


def features_begin(operation: Operation) -> int | None:
    """The first dimension of looked up features; None if the ids' dimensions are not in front.

    ``table[ids]`` has the ids' dimensions first and the table's features behind them. Where ids
    are broadcast to the features, as for ``torch.gather``, there are no dimensions of features
    alone, and the number is that of all dimensions.

    Args:
        operation: a lookup.
    """
    ((ids, _), *_) = operation.traced()
    ndim = len(ids.size)
    brackets = operation.argument("brackets")
    if brackets is not None:
        first = brackets[0] if isinstance(brackets, tuple) else brackets
        longest = max(len(operand.size) for operand in leaves(Operand, brackets))
        return ndim if isinstance(first, Operand) and ndim == longest else None
    if "weight" in operation.arguments:
        return ndim
    table = operation.arguments["input"]
    dim = operation.dim(len(table.size))
    # What is taken without a dimension, or beside others of its length, has the ids' own shape.
    along_rows = dim in (None, 0) or ndim == len(table.size) > 1
    return ndim if along_rows else None


def summed_over_features(ids: Operand, looked_up: Tensor) -> Tensor:
    """What is known of each looked up feature, summed up for each id.

    Args:
        ids: the ids, whose dimensions are in front.
        looked_up: one number for each feature.
    """
    ndim = len(ids.size)
    rows = looked_up.flatten(ndim).sum(-1) if looked_up.ndim > ndim else looked_up
    return rows.sum_to_size(ids.size)
