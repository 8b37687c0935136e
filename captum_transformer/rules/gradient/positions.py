"""Positions as inputs (Bakish et al., NeurIPS 2025): rotary angles and added positions."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.constants import constant_part
from captum_transformer.rules.gradient.share import divided
from captum_transformer.trace.attention import AttentionCall, ExplicitAttention
from captum_transformer.trace.kinds import COPIES, Kind
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import scores_of
from captum_transformer.trace.recorder import ForwardRules
from captum_transformer.trace.value import Value

_ADDS = frozenset({Kind.ADD, Kind.SUB})
# Operations that may rearrange a signal or change its sign before it is rotated.
_TURNED = COPIES | {Kind.HOMOGENEOUS}
# The note of the last step of a rotary embedding.
_TURNS = object()
# How far sums of the squares of a sine and a cosine may differ in half precision, relatively.
_ROUNDING = 1e-2


class _UnplacedError(UnsupportedOperationError):
    """Raised if tokens are scaled by a constant that may be a position in an unknown form."""


def share_with_angles(operation: Operation) -> Any:
    """Runs a rotary embedding so that the signal gets half; the angles get the other half."""
    if not _is_rotation(operation):
        return refuse_unplaced(operation) if operation.kind is Kind.MUL else NotImplemented
    for _, value in operation.traced():
        if value.operation is not None and isinstance(value.operation.refusal, _UnplacedError):
            value.operation.refusal = None
    operation.note = _TURNS
    return divided(operation, {operand: 2 for operand, _ in operation.traced()})


def refuse_unplaced(operation: Operation) -> Any:
    """Refuses products with a constant that differs from token to token, until it is known."""
    if len(operation.traced()) == 1 and _differs_by_token(operation):
        operation.refusal = _UnplacedError(
            f"{operation.described} scales tokens by a constant that differs from token to token. "
            "Positions of this kind are only supported as rotary embeddings, `x * cos + turned(x) "
            "* sin`. Use `positions='ignore'`."
        )
    return NotImplemented


POSITIONS: ForwardRules = {
    **dict.fromkeys((Kind.ADD, Kind.SUB, Kind.MUL), share_with_angles),
    **dict.fromkeys((Kind.DIV, Kind.PRODUCT), refuse_unplaced),
}


def _is_rotation(operation: Operation) -> bool:
    """Returns whether an operation is the last step of a rotary embedding of one signal.

    That is a sum or difference of two products of its entries with a cosine and a sine, or one
    product with complex constants.
    """
    values = [value for _, value in operation.traced()]
    if operation.kind is Kind.MUL:
        return len(values) == 1 and values[0].dtype.is_complex and bool(_constants(operation))
    if operation.kind not in _ADDS or len(values) != 2 or operation.argument("alpha", 1) != 1:
        return False
    products = [v.operation for v in values if v.operation and v.operation.kind is Kind.MUL]
    if any(len(p.traced()) != 1 or len(_constants(p)) != 1 for p in products):
        return False
    turned = [p.traced()[0][1] for p in products]
    if len(turned) != 2 or turned[0] is turned[1] or len(set(map(_root, turned))) != 1:
        return False
    cosine, sine = (in_full(_constants(p)[0]) for p in products)
    squares = cosine * cosine + sine * sine
    ones = (squares.amax() - squares.amin()) <= _ROUNDING * squares.amax()
    return truth(ones, "whether a product with constants is a rotation")


def _constants(product: Operation) -> list[Operand]:
    """Returns the constant factors of a product that have several entries."""
    contraction = product.contraction()
    factors = product.operands if contraction is None else contraction.factors
    return [o for o in factors if o.value is None and o.size.numel() > 1]


def _differs_by_token(operation: Operation) -> bool:
    """Returns whether a constant differs along other axes than the samples and features."""
    ((signal, value),) = operation.traced()
    shape, product = value.shape, operation.contraction()
    known = [*(value.features or ()), *([] if value.samples is None else [value.samples])]
    own = {axis.dim(shape) for axis in known}
    for constant in _constants(operation):
        strides = constant.given.stride()
        for dim, (length, stride) in enumerate(zip(constant.size, strides, strict=True)):
            if length == 1 or not stride:
                continue
            along: int | None = dim - len(constant.size) + len(shape)
            if product is not None:
                along = product.of(signal).find(product.of(constant)[dim])
                along = None if along < 0 or along in product.summed(signal) else along
            if along is not None and along not in own and (along < 0 or shape[along] > 1):
                return True
    return False


def _root(value: Value) -> Value:
    """Returns the value that a value was before its entries were rearranged."""
    operation = value.operation
    if operation is None or operation.kind not in _TURNED:
        return value
    roots = {_root(source) for _, source in operation.traced()}
    return roots.pop() if len(roots) == 1 else value


def of_positions(
    operations: Iterable[Operation], calls: Iterable[AttentionCall]
) -> list[Operation]:
    """Returns the operations, except those of scores, that add positions or rotate by them."""
    of_scores = {step for call in calls for step in _steps_of_scores(call)}
    return [
        operation
        for operation in operations
        if operation not in of_scores
        and (operation.note is _TURNS or (operation.kind in _ADDS and len(operation.traced()) == 1))
    ]


def _steps_of_scores(call: AttentionCall) -> list[Operation]:
    """Returns the operations from products of queries and keys to the probabilities."""
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
    """Returns the positions' part of each entry of an output: half of it, or what they add.

    Args:
        operation: one of `of_positions`.
        slope: the gradient at its output.
    """
    if operation.note is _TURNS:
        (result,) = operation.replay([in_full(operand) for operand, _ in operation.traced()])
        half: Tensor = (result * slope.conj()).real / 2
        return half
    part = constant_part(operation, slope)
    return part[1] if part is not None and part[0] is Reason.ADDED else None
