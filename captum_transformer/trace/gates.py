"""Activations written in Python: a signal times a gate made, entry by entry, of it alone."""

import torch
from torch import Tensor

from captum_transformer.trace.kinds import ENTRIES_ALONE, Kind
from captum_transformer.trace.operation import Operation, Value


def gated_scale(signal: Value, gate: Value) -> Tensor | None:
    """Says whether ``signal * gate`` is one activation f(x), as ``x * sigmoid(x)``, and of which x.

    That is so if the signal is a constant multiple c x of a value x, and the gate was made of x
    alone by operations that treat each entry by itself.

    Returns:
        The constant c: a number, or entries that broadcast to the signal; None if it is not so.
    """
    source, multiples = signal, []
    while not _made_by_entry(gate, source):
        operation = source.operation
        if operation is None or not _multiplies(operation, source):
            return None
        multiples.append(operation)
        ((_, source),) = operation.traced()
    scale = torch.ones((), dtype=torch.float64)
    for operation in multiples:
        (scale,) = operation.replay([scale])
    return scale


def _multiplies(operation: Operation, product: Value) -> bool:
    """Whether an operation multiplies a signal by a constant."""
    traced = [value for _, value in operation.traced()]
    known = operation.kind in (Kind.MUL, Kind.DIV) and len(traced) == 1
    return known and traced[0].shape == product.shape


def _made_by_entry(value: Value, source: Value) -> bool:
    pending, seen = [value], {source}
    while pending:
        part = pending.pop()
        if part in seen:
            continue
        seen.add(part)
        operation = part.operation
        if part.shape != source.shape or part.index < source.index or operation is None:
            return False
        if operation.kind not in ENTRIES_ALONE:
            return False
        pending += [operand for _, operand in operation.traced()]
    return True
