"""Positions as inputs (Bakish et al., NeurIPS 2025): what rotary angles get, and what is added."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.constants import constant_part
from captum_transformer.rules.gradient.share import divided
from captum_transformer.trace.attention import AttentionCall, ExplicitAttention
from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.mode import ForwardRules
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.probabilities import scores_of
from captum_transformer.trace.value import Value

_ADDS = frozenset({Kind.ADD, Kind.SUB})
# What of a signal may be rearranged or change its sign before it is turned.
_TURNED = MOVES | {Kind.COPY, Kind.HOMOGENEOUS}


def share_with_angles(operation: Operation) -> Any:
    """Runs a rotary embedding so that the signal gets half; the angles have the other half."""
    if not is_rotation(operation):
        return NotImplemented
    return divided(operation, {operand: 2 for operand, _ in operation.traced()})


POSITIONS: ForwardRules = dict.fromkeys((Kind.ADD, Kind.SUB, Kind.MUL), share_with_angles)


def is_rotation(operation: Operation) -> bool:
    """Whether it is the last step of a rotary embedding: entries of one signal, turned by angles.

    That is a sum or difference of two products of its entries with constants, one for each entry,
    or one product with complex constants.
    """
    values = [value for _, value in operation.traced()]
    if operation.kind is Kind.MUL:
        return len(values) == 1 and values[0].dtype.is_complex and _has_angles(operation)
    if operation.kind not in _ADDS or len(values) != 2:
        return False
    roots = set()
    for value in values:
        product = value.operation
        if product is None or product.kind is not Kind.MUL or not _has_angles(product):
            return False
        ((_, turned),) = product.traced()
        roots.add(_root(turned))
    return len(roots) == 1


def _has_angles(product: Operation) -> bool:
    """Whether it multiplies one signal with a constant that has several entries."""
    constants = [operand for operand in product.operands if operand.value is None]
    return len(product.traced()) == 1 and any(o.size.numel() > 1 for o in constants)


def _root(value: Value) -> Value:
    """What a value was before its entries were rearranged."""
    operation = value.operation
    if operation is None or operation.kind not in _TURNED:
        return value
    roots = {_root(source) for _, source in operation.traced()}
    return roots.pop() if len(roots) == 1 else value


def of_positions(
    operations: Iterable[Operation], calls: Iterable[AttentionCall]
) -> list[Operation]:
    """The operations that add positions to tokens, or turn tokens by them; scores left out."""
    of_scores = {step for call in calls for step in _steps_of_scores(call)}
    return [
        operation
        for operation in operations
        if operation not in of_scores
        and (is_rotation(operation) or (operation.kind in _ADDS and len(operation.traced()) == 1))
    ]


def _steps_of_scores(call: AttentionCall) -> list[Operation]:
    """What attention makes of the products of queries and keys, up to its probabilities."""
    if not isinstance(call, ExplicitAttention):
        return []
    found: list[Operation] = []
    start, pending = scores_of(call.weights.value), [call.weights.value]
    while pending:
        value = pending.pop()
        operation = None if value is None else value.operation
        if operation is None or operation is start or operation in found:
            continue
        found.append(operation)
        pending += [source for _, source in operation.traced()]
    return found


def share_of_positions(operation: Operation, slope: Tensor) -> Tensor | None:
    """What positions have of each entry that an operation makes: half of it, or what they add.

    Args:
        operation: one of `of_positions`.
        slope: the gradient at its output.
    """
    if is_rotation(operation):
        (result,) = operation.replay([in_full(operand) for operand, _ in operation.traced()])
        half: Tensor = (result * slope.conj()).real / 2
        return half
    part = constant_part(operation, slope)
    return part[1] if part is not None and part[0] is Reason.ADDED else None
