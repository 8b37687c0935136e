"""What of an operation's operands and results the inputs reach."""

from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.functions import Function, Kind
from captum_transformer.trace.operation import Operand
from captum_transformer.trace.tape import Tape

# Token ids become features by looking them up in a table, and stay token ids under these.
LOOKUPS = frozenset({"embedding", "getitem", "index_select"})
_COMPLEX = frozenset({Kind.SHAPE, Kind.MUL, Kind.TRANSFORM})
_KEEPS_IDS = frozenset(
    "to long int type clamp clip add radd sub subtract mul rmul multiply remainder fmod mod".split()
)


def leave_out_constants(operands: list[Operand]) -> None:
    """Leaves out what is a constant next to a signal: token ids, an index, and learned weights."""
    values = [operand.value for operand in operands if operand.value is not None]
    others = [value for value in values if value.learned or value.holds_ids]
    from_inputs = len(others) < len(values)
    if not others or (not from_inputs and all(value.holds_ids for value in others)):
        return
    for operand in operands:
        value = operand.value
        if value is None:
            continue
        if value.holds_ids or (from_inputs and value.learned and value.keys is not None):
            operand.value = None


def reached(
    tape: Tape, function: Function, result: Any, operands: list[Operand]
) -> list[Tensor | None]:
    """Which results the inputs reach: the differentiable ones, and rearranged token ids.

    Returns:
        One entry for each result, None where they don't reach it; an empty list if they reach none.
    """
    values = [operand.value for operand in operands if operand.value is not None]
    if not values:
        return [result if result.requires_grad else result.requires_grad_()]
    outputs: list[Tensor | None] = []
    some = False
    for entry in result if isinstance(result, (tuple, list)) else [result]:
        # Next to signals token ids are constants, so the first value tells for all.
        of_ids = values[0].holds_ids
        output = _of_ids(tape, function, entry) if of_ids else _of_signals(function, entry)
        outputs.append(output)
        some = some or output is not None
    return outputs if some else []


def _of_signals(function: Function, output: Any) -> Tensor | None:
    if not isinstance(output, Tensor) or not output.requires_grad:
        return None
    # Complex numbers are pairs of features that are turned by a constant (rotary embeddings), or
    # spectra.
    return None if output.is_complex() and function.kind not in _COMPLEX else output


def _of_ids(tape: Tape, function: Function, output: Any) -> Tensor | None:
    if not isinstance(output, Tensor) or output.is_complex():
        return None
    shapes = function.kind is Kind.SHAPE
    if not output.is_floating_point():
        carries = output.dtype != torch.bool and function.name in _KEEPS_IDS
        return output if carries or shapes else None
    if function.kind is not Kind.EMBEDDING and function.name not in LOOKUPS:
        return None
    if torch.is_grad_enabled():
        if not output.requires_grad:
            output.requires_grad_()
        tape.add_root(output)
    return output if output.requires_grad else None
