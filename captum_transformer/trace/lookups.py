"""Where the dimensions of ids and of what they look up lie in the output of a lookup."""

from captum_transformer.trace.indices import picked
from captum_transformer.trace.operation import Operand, Operation


def ahead_of_ids(operation: Operation, ids: Operand) -> int | None:
    """Returns how many dimensions the output of a lookup has in front of those of the ids."""
    if "weight" in operation.arguments:
        return 0 if ids is operation.arguments["index"] else None
    table, brackets = operation.arguments["input"], operation.argument("brackets")
    if ids is table:
        return None
    if brackets is not None:
        places = picked(brackets, len(table.size))
        return places.front + places.new - len(ids.size)
    # Without a single `dim`, or with ids of the table's ndim, the output has the shape of the ids.
    dims = operation.along(len(table.size))
    whole = not dims or len(dims) > 1 or len(ids.size) == len(table.size)
    return dims[0] if dims and not whole else 0


def features_begin(operation: Operation) -> int | None:
    """Returns the first dimension of looked-up features, or None if the ids' aren't in front.

    ``table[ids]`` has the dimensions of the ids first, followed by the features of the table. If
    ids are broadcast to the features, as for ``torch.gather``, no dimension holds only features,
    and the result is the number of all dimensions.
    """
    ((ids, _), *_) = operation.traced()
    return len(ids.size) if ahead_of_ids(operation, ids) == 0 else None
