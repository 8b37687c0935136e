"""Which rule divides the share of which kind of operation."""

from collections.abc import Callable

from torch import Tensor

from captum_transformer.rules.flow import shares
from captum_transformer.rules.flow.shares import Divided
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, Kind
from captum_transformer.trace.operation import Operand, Operation

PICKED = frozenset({Kind.MAXIMUM, Kind.CHOICE})
Rule = Callable[[Operation, Operand, Tensor, Tensor | None], Divided]
# What goes to one signal, entry by entry.
ENTRY_RULES: dict[Kind, Rule] = {
    **dict.fromkeys(BY_ENTRY, shares.by_entry),
    Kind.EMBEDDING: shares.looked_up,
}
# What goes to one signal of which several entries make one, and only some may hold a source.
MIXED_RULES: dict[Kind, Rule] = {
    Kind.PRODUCT: shares.product,
    **dict.fromkeys(CONVOLUTIONS, shares.receptive_field),
    **dict.fromkeys((Kind.SUM, Kind.MEAN, Kind.POOL), shares.summed),
    Kind.DISTANCE: shares.far,
    Kind.SUM_AT_INDICES: lambda operation, _, share, held: shares.summed_at_indices(
        operation, share, [held]
    ),
}
# What each of several signals gets of a share that is its own.
MEETING_RULES: dict[Kind, Rule] = {
    **dict.fromkeys((Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV, Kind.CONTRAST), shares.by_entry),
    Kind.PRODUCT: shares.compared,
    Kind.DISTANCE: shares.far,
}
