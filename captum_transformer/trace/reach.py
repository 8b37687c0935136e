"""What of an operation's operands and results the inputs reach."""

from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.tape import Tape

_COMPLEX = MOVES | {Kind.MUL, Kind.TRANSFORM}
# Token ids stay token ids when they are shifted to their part of a table, hashed, or moved.
_KEEPS_IDS = MOVES | {Kind.COPY, Kind.ENTRYWISE, Kind.ADD, Kind.SUB, Kind.MUL}


def leave_out_constants(operands: list[Operand]) -> None:
    """Leaves out what is a constant next to a signal: token ids, an index, and learned tokens."""
    values = [operand.value for operand in operands if operand.value is not None]
    others = [value for value in values if value.learned or value.holds_ids]
    from_inputs = len(others) < len(values)
    if not others or (not from_inputs and all(value.holds_ids for value in others)):
        return
    for operand in operands:
        value = operand.value
        if value is None or not (value.holds_ids or (from_inputs and value.learned)):
            continue
        if value.learned and value.keys is None:
            operand.tokens = value
        operand.value = None


def reached(tape: Tape, operation: Operation, result: Any) -> list[Tensor | None]:
    """Which results the inputs reach: the differentiable ones, and rearranged token ids.

    Returns:
        One entry for each result, None where they don't reach it; an empty list if they reach none.
    """
    traced = operation.traced()
    if not traced:
        return [result if result.requires_grad else result.requires_grad_()]
    outputs: list[Tensor | None] = []
    some = False
    for entry in result if isinstance(result, (tuple, list)) else [result]:
        # Next to signals token ids are constants, so the first value tells for all.
        of_ids = traced[0][1].holds_ids
        output = _of_ids(tape, operation.kind, entry) if of_ids else _of_signals(operation, entry)
        outputs.append(output)
        some = some or output is not None
    return outputs if some else []


def _of_signals(operation: Operation, output: Any) -> Tensor | None:
    if not isinstance(output, Tensor) or not output.requires_grad:
        return None
    # Complex numbers are pairs of features that are turned by a constant (rotary embeddings), or
    # spectra.
    return None if output.is_complex() and operation.kind not in _COMPLEX else output


def _of_ids(tape: Tape, kind: Kind, output: Any) -> Tensor | None:
    if not isinstance(output, Tensor) or output.is_complex():
        return None
    if not output.is_floating_point():
        carries = output.dtype != torch.bool and kind in _KEEPS_IDS
        return output if carries or kind in MOVES else None
    if kind is not Kind.EMBEDDING:
        return None
    if torch.is_grad_enabled():
        if not output.requires_grad:
            output.requires_grad_()
        tape.add_root(output)
    return output if output.requires_grad else None
