"""What of an operation's operands and results the inputs reach."""

from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.functions import Function, Kind
from captum_transformer.trace.operation import Operand, Value
from captum_transformer.trace.tape import Tape

# Token ids become features by looking them up in a table, and stay token ids under these.
LOOKUPS = frozenset({"embedding", "getitem", "index_select"})
_COMPLEX = frozenset({Kind.SHAPE, Kind.MUL, Kind.TRANSFORM})
_KEEPS_IDS = frozenset(
    "to long int type clamp clip add radd sub subtract mul rmul multiply remainder fmod mod".split()
)


def without_constants(values: dict[int, Value | None]) -> dict[int, Value | None]:
    """Leaves out what is a constant next to a signal: token ids, an index, and learned weights."""
    found = [value for value in values.values() if value is not None]
    if not any(value.learned or value.holds_ids for value in found):
        return values
    from_inputs = any(not value.learned and not value.holds_ids for value in found)
    if not from_inputs and all(value.holds_ids for value in found):
        return values

    def counts(value: Value | None) -> bool:
        if value is None or value.holds_ids:
            return False
        return not (from_inputs and value.learned and value.keys is not None)

    return {key: value if counts(value) else None for key, value in values.items()}


def reached(
    tape: Tape, function: Function, result: Any, operands: list[Operand]
) -> list[Tensor | None]:
    """Which results the inputs reach: the differentiable ones, and rearranged token ids."""
    outputs: list[Tensor | None] = []
    shapes = function.kind is Kind.SHAPE
    traced = [o for o in operands if o.value is not None]
    if not traced:
        return [result if result.requires_grad else result.requires_grad_()]
    from_ids = all(not (o.dtype.is_floating_point or o.dtype.is_complex) for o in traced)
    looks_up = from_ids and (function.kind is Kind.EMBEDDING or function.name in LOOKUPS)
    for output in result if isinstance(result, (tuple, list)) else [result]:
        if not isinstance(output, Tensor):
            outputs.append(None)
        elif output.is_floating_point():
            if looks_up and torch.is_grad_enabled():
                if not output.requires_grad:
                    output.requires_grad_()
                tape.add_root(output)
            is_reached = output.requires_grad and (looks_up or not from_ids)
            outputs.append(output if is_reached else None)
        elif output.is_complex():
            # Pairs of features that are turned by a constant (rotary embeddings), or spectra.
            is_reached = output.requires_grad and function.kind in _COMPLEX
            outputs.append(output if is_reached else None)
        else:
            carries = from_ids and output.dtype != torch.bool and function.name in _KEEPS_IDS
            outputs.append(output if carries or (from_ids and shapes) else None)
    return outputs
