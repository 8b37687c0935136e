"""Which entries of a value are of the signal, and which are padding that a model has put there."""

import torch
from torch import Tensor

from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.operation import Value

_MOVES = MOVES | {Kind.COPY}
# Padding stays padding under these; what a linear layer makes of it counts as a signal again.
_ENTRY_WISE = frozenset(
    MOVES
    | {Kind.COPY, Kind.ENTRYWISE, Kind.HOMOGENEOUS, Kind.NORM}
    | {Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV}
)


def of_signal(value: Value, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """One where an entry is of the signal and zero at padding; None if nothing was padded.

    Padding takes no share of what is made of it and a signal, as in convolutions that pad by
    themselves: where windows or merged tokens reach over the edge of an image, what lies within
    stands for all.
    """
    operation = value.operation
    if operation is None or operation.kind not in _ENTRY_WISE:
        return None
    sources = [source for _, source in operation.traced()]
    if operation.kind not in _MOVES and len(sources) > 1:
        return None
    parts = [of_signal(source, dtype, device) for source in sources]
    # Models whose windows may reach over the edge pad by zero entries where they don't.
    pads = operation.kind is Kind.PAD and any(width > 0 for width in operation.argument("pad"))
    if not pads and all(part is None for part in parts):
        return None
    present = [
        torch.ones(source.shape, dtype=dtype, device=device) if part is None else part
        for source, part in zip(sources, parts, strict=True)
    ]
    if operation.kind not in _MOVES:
        return present[0].expand(value.shape)
    place = operation.outputs.index(value)
    with torch.no_grad():
        given = operation.replay(present)[place]
        absent = operation.replay([torch.zeros_like(part) for part in present])[place]
    entries: Tensor = (given != absent).to(dtype)
    return entries
