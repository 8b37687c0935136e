"""Which of an operation's results the inputs reach."""

from typing import Any

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.nested import leaves
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.step_functions import made_of_ids
from captum_transformer.trace.tape import Tape

_UNKNOWN = Kind.UNKNOWN
_COMPLEX = MOVES | {Kind.MUL, Kind.TRANSFORM}
# Token ids stay token ids when they are shifted to their part of a table, hashed, or moved.
_KEEPS_IDS = MOVES | {Kind.COPY, Kind.ENTRYWISE, Kind.HOMOGENEOUS, Kind.ADD, Kind.SUB, Kind.MUL}


def with_gradient(result: Any) -> Any:
    """Makes a result of token ids or learned queries a signal that has a gradient.

    Like any signal it may be written into, so it must not be a leaf of the autograd graph.
    """
    if isinstance(result, tuple):
        return (with_gradient(result[0]), *result[1:])
    if not isinstance(result, Tensor) or result.requires_grad or not torch.is_grad_enabled():
        return result
    return result.requires_grad_().clone() if result.is_floating_point() else result


def reached(
    tape: Tape, operation: Operation, result: Any, *, by_rule: bool = False
) -> list[Tensor | None]:
    """Returns the results that the inputs reach: differentiable ones and rearranged token ids.

    Args:
        tape: the tape of the operations that have run so far.
        operation: the operation that has just run.
        result: its result.
        by_rule: whether a rule computed the result; rules may hold constant what depends on inputs.

    Returns:
        One entry for each result, or None if the inputs don't reach it; an empty list if they
        reach no result.
    """
    traced = operation.traced()
    if not traced:
        return [result[0] if isinstance(result, tuple) else result]
    # Token ids next to signals are constants, so the first value decides for all.
    of_ids = traced[0][1].holds_ids
    outputs: list[Tensor | None] = []
    some = False
    for entry in result if isinstance(result, (tuple, list)) else (result,):
        output = _of_ids(tape, operation, entry) if of_ids else _of_signals(operation, entry)
        outputs.append(output)
        some = some or output is not None
    if not of_ids and not by_rule and not (some and _is_derived(operation, outputs)):
        _refuse_underived(operation, result)
    return outputs if some else []


def _of_signals(operation: Operation, output: Any) -> Tensor | None:
    if not isinstance(output, Tensor) or not output.requires_grad:
        return None
    if output.is_nested or output.layout is not torch.strided:
        raise UnsupportedOperationError(
            f"{operation.described} makes a nested or sparse tensor, in which it is unknown which "
            f"entries belong to which token. Use a padded, dense one with a mask."
        )
    if output.dtype.is_complex and operation.kind not in _COMPLEX:
        # Complex numbers are pairs of features that are rotated by a constant (rotary embeddings),
        # or spectra.
        operation.refusal = UnsupportedOperationError(
            f"{operation.described} makes complex numbers, which are followed only where they are "
            "moved, multiplied or transformed (rotary embeddings, spectra): the share of each "
            "signal is unknown. Write it with real numbers."
        )
    return output


def _of_ids(tape: Tape, operation: Operation, output: Any) -> Tensor | None:
    kind = operation.kind
    if not isinstance(output, Tensor) or output.is_complex():
        return None
    if not output.is_floating_point():
        carries = output.dtype != torch.bool and kind in _KEEPS_IDS
        return output if carries or kind in MOVES else None
    if not output.requires_grad:
        return None
    if kind is not Kind.EMBEDDING:
        operation.refusal = operation.refusal or made_of_ids(operation)
    tape.add_root(output)
    return output


def _is_derived(operation: Operation, outputs: list[Tensor | None]) -> bool:
    """Whether autograd has the derivative, and not only a node that warns that there is none."""
    if operation.kind is not _UNKNOWN and not operation.function.foreign:
        return True
    nodes = [output.grad_fn for output in outputs if output is not None]
    return not any(node and node.name().endswith("NotImplemented") for node in nodes)


def _refuse_underived(operation: Operation, result: Any) -> None:
    """Raises if a result of signals has no derivative and was not meant to be detached."""
    if operation.function.kind is Kind.COPY or not torch.is_grad_enabled():
        return
    if not any(t.is_floating_point() or t.is_quantized for t in leaves(Tensor, result)):
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UnsupportedOperationError(
            f"`{operation.name}` runs inside `torch.vmap`, where the model's values can't be "
            "followed. Call the model in a loop instead."
        )
    raise UnsupportedOperationError(
        f"Autograd has no derivative of `{operation.name}`, so everything that depends on the "
        "inputs through it would get zero relevance. If it is a linear layer with quantised "
        "weights, "
        f"describe it with `captum_transformer.extend.describe_linear`, or explain the model with "
        f"weights in "
        "floating point (`model.dequantize()` in Transformers). To exclude the dependence, call "
        "`detach()` on its input."
    )
