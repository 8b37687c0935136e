"""Finds out, from the operations alone, if only tokens without a source were picked."""

from collections.abc import Sequence

from captum_transformer.rules.flow.sources import Sources
from captum_transformer.rules.flow.terms import ADDITIONS, receiving
from captum_transformer.trace.axis import Axis, View
from captum_transformer.trace.kinds import BY_ENTRY, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of


def picks_others(value: Value, sought: int, sources: Sources, wanted: Sequence[Value]) -> bool:
    """Returns whether no share of some sources at a value leads to the wanted values.

    That is so for a class token that was joined to the patches and picked in the end. False if the
    operations don't show it.
    """
    view: View | None = None
    while (operation := value.operation) is not None and value not in wanted:
        found = _only_one(operation, sought, sources)
        if found is None:
            return False
        operand, source = found
        if view is not None and (operation.kind not in BY_ENTRY or source.shape != value.shape):
            return _lies_beside(operation, operand, value, view)
        if view is None and not sources.of(source).by_picked & sought:
            view = view_of(operation, value)
            if view is None:
                return False
        value = source
    return False


def _only_one(operation: Operation, sought: int, sources: Sources) -> tuple[Operand, Value] | None:
    """Returns the signal that a whole share goes to, or None if there is no such signal."""
    signals, junction = receiving(operation), sources.junction(operation)
    if junction is not None:
        signals = [s for s, own in zip(signals, junction.whole, strict=True) if own & sought]
        if junction.shared & sought or operation.kind not in BY_ENTRY:
            return None
    if len(signals) != 1:
        return None
    made = signals[0][1].operation
    # Where constants mask a signal, others get its share.
    alone = operation.kind not in ADDITIONS or junction is None
    whole = made is not None and made.kind in BY_ENTRY and len(made.traced()) > 1
    others = (v for _, v in receiving(operation) if v is not signals[0][1])
    return (
        signals[0] if alone or whole or not any(sources.held(v) & sought for v in others) else None
    )


def _lies_beside(operation: Operation, operand: Operand, joined: Value, view: View) -> bool:
    """Returns whether a view shows no token of the signal that was joined to constants."""
    if operation.kind is not Kind.CONCATENATE or len(operation.traced()) != 1:
        return False
    dim = operation.dim(len(joined.shape)) or 0
    seen = Axis.of(joined.shape, dim).seen_in(view)
    sizes = [o.size[dim] if len(o.size) == len(joined.shape) else 0 for o in operation.operands]
    place = operation.operands.index(operand)
    start, size = sum(sizes[:place]), sizes[place]
    return seen is not None and (seen[0] + seen[1].size <= start or start + size <= seen[0])
