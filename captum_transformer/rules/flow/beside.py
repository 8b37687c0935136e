"""Operations that the token flow leaves out: they mix tokens beside a skip, without attention.

The skip is the token itself and gets its whole share, whatever a branch beside it computes from
this and other tokens.
"""

from collections.abc import Sequence

from captum_transformer.rules.flow.sources import Sources
from captum_transformer.rules.flow.terms import receiving
from captum_transformer.trace.kinds import BY_ENTRY, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.pooling import mixes_tokens
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import views_of

_KEEPS_TOKENS = BY_ENTRY | {Kind.EMBEDDING}


def beside_skips(operations: Sequence[Operation], sources: Sources) -> list[Operation]:
    """Returns the operations that mix tokens in a branch whose skip gets their whole share."""
    found: dict[Operation, None] = {}
    for operation in operations:
        junction = sources.junction(operation)
        if junction is None:
            continue
        values = [value for _, value in receiving(operation)]
        for skip, whole in zip(values, junction.whole, strict=True):
            for branch in values:
                if branch is not skip and whole & sources.held(branch):
                    found |= dict.fromkeys(_mixing(branch, skip.origin, sources))
    return sorted(found, key=lambda operation: operation.index)


def _mixing(branch: Value, skip: Value, sources: Sources) -> list[Operation]:
    """Returns the operations that mix tokens between a skip and a branch, without attention."""
    found, pending, seen = [], [branch], {skip}
    while pending:
        value = pending.pop()
        operation = value.operation
        if operation is None or value in seen or value in sources.values:
            continue
        seen.add(value)
        before = [pair for pair in operation.traced() if pair[1].descends_from(skip)]
        before += [pair for pair in operation.traced() if pair[1] is skip]
        pending += [source for _, source in before]
        if operation.kind in _KEEPS_TOKENS or views_of(operation) is not None:
            continue
        if any(mixes_tokens(operation, operand, source) for operand, source in before):
            found.append(operation)
    return found
