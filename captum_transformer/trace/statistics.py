"""Norms: what a fused one divides by, and which operands of a hand-written one do so."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.kinds import ENTRIES_ALONE, MOVES, Kind
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.operation import Operation, Value

# Of these a norm makes its divisor, beside sums and means; other functions make a gate.
POWERS = frozenset("sqrt pow float_power square clamp clip clamp_min clamp_max".split())
_ONE_BY_ONE = ENTRIES_ALONE | MOVES


def is_statistic_of(value: Value, signal: Value, kind: Kind) -> bool:
    """Whether ``value`` is, say, the signal's own mean, row by row, as in a hand-written LayerNorm.

    A mean over tokens alone is none. Where features are unknown, or lie in parts of dimensions as
    those of groups, rows are taken for the last dimension.
    """
    operation = value.origin.operation
    if operation is None:
        return False
    (_, source), *_ = operation.traced()
    if kind is Kind.SMOOTH_MAXIMUM and operation.name == "log" and value.shape[-1] == 1:
        total = sum_of_exponentials(source)
        if total is None or _exponent(total.traced()[0][1]) is not signal.origin:
            return False
        _leave_out_shifts(signal.origin, -1)
        return True
    if operation.kind is not kind:
        return False
    dims = operation.along(len(source.shape)) or ()
    row = [1 if dim in dims else length for dim, length in enumerate(source.shape)]
    if source.origin is not signal.origin or list(value.shape) != row:
        return False
    if kind is not Kind.MEAN:
        return True
    known, before = source.features or (), source.origin.features or ()
    if not known or prod(axis.size for axis in known) < prod(axis.size for axis in before):
        return len(source.shape) - 1 in dims
    return any(axis.dim(source.shape) in dims for axis in known)


def is_divided(operation: Operation) -> list[bool] | None:
    """For each traced operand, whether it is divided or shifted by the others.

    None if the operation does nothing of the kind: then its operands are on a par.
    """
    if len(operation.traced()) < 2:
        return None
    values = [value for _, value in operation.traced()]
    if operation.kind in (Kind.MUL, Kind.PRODUCT):
        are_signals = [not value.is_denominator for value in values]
        return are_signals if any(are_signals) and not all(are_signals) else None
    if len(values) != 2:
        return None
    if operation.kind in (Kind.DIV, Kind.SOLVE):
        divided = operation.argument("input" if operation.kind is Kind.DIV else "other")
        return [operand is divided for operand, _ in operation.traced()]
    if operation.kind is Kind.SUB:
        signal = operation.argument("input")
        (subtracted,) = (v for o, v in operation.traced() if o is not signal)
        kinds = (Kind.MEAN, Kind.SMOOTH_MAXIMUM)
        if any(is_statistic_of(subtracted, signal.value, kind) for kind in kinds):
            return [operand is signal for operand, _ in operation.traced()]
    return None


def signal_of(operation: Operation) -> list[bool] | None:
    """For each traced operand, whether it is the signal of a hand-written norm's step.

    None if the operation is no such step. What divides may be a gate: then it is none.
    """
    are_signals = is_divided(operation)
    if are_signals is None or operation.kind is Kind.SUB:
        return are_signals
    parts = zip(operation.traced(), are_signals, strict=True)
    gates = any(is_gate_by_formula(value) for (_, value), is_signal in parts if not is_signal)
    return None if gates else are_signals


def is_gate_by_formula(value: Value) -> bool:
    """Whether a divisor is an activation of each entry, as ``1 + exp(-x)``, and no statistic."""
    operation = value.operation
    if operation is None or operation.kind not in _ONE_BY_ONE:
        return False
    if operation.kind is Kind.ENTRYWISE and operation.name not in POWERS:
        return True
    return any(is_gate_by_formula(source) for _, source in operation.traced())


def softmax_dim(operation: Operation) -> int | None:
    """Along which dimension a softmax runs, also one that is written by hand; None if it is none.

    That is exponentials over their sum, or the exponential of a logarithm of a softmax.
    """
    if operation.kind is Kind.SOFTMAX:
        output = operation.outputs[0]
        return None if output is None else operation.dim(len(output.shape))
    if operation.kind is Kind.ENTRYWISE:
        ((_, value), *_) = operation.traced()
        return _dim_of_logarithm(value) if operation.name == "exp" else None
    are_signals = is_divided(operation) if operation.kind in (Kind.DIV, Kind.MUL) else None
    if are_signals is None or len(are_signals) != 2:
        return None
    value, divisor = (v for _, v in operation.traced()[:: 1 if are_signals[0] else -1])
    scores, total = _exponent(value), sum_of_exponentials(divisor)
    if scores is None or total is None:
        return None
    same = _exponent(total.traced()[0][1]) is scores
    dim = total.dim(len(value.shape)) if same else None
    if dim is not None:
        _leave_out_shifts(scores, dim - len(value.shape))
    return dim


_TO_SCORES = frozenset({Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV, Kind.COPY})
_TO_SUM = MOVES | {Kind.COPY, Kind.ADD, Kind.ENTRYWISE, Kind.RECIPROCAL}


def _before(value: Value, kinds: Collection[Kind]) -> Value:
    """What some kinds of operation of one signal have made a value of."""
    while (operation := value.operation) is not None and operation.kind in kinds:
        traced = operation.traced()
        if len(traced) != 1:
            break
        ((_, value),) = traced
    return value


def sum_of_exponentials(value: Value) -> Operation | None:
    """The sum that a value is made of, if it is one of exponentials."""
    total = _summed(value)
    return None if total is None or _exponent(total.traced()[0][1]) is None else total


def _summed(value: Value) -> Operation | None:
    total = _before(value, _TO_SUM).operation
    return total if total is not None and total.kind in (Kind.SUM, Kind.DISTANCE) else None


def sums_to_one_again(operation: Operation) -> bool:
    """Whether it divides softmax weights, some of them masked, by their sum."""
    values, are_signals = [value for _, value in operation.traced()], is_divided(operation)
    if are_signals is None or len(values) != 2:
        return False
    weights, divisor = values[:: 1 if are_signals[0] else -1]
    scores, total = _softened(weights), _summed(divisor)
    return scores is not None and total is not None and _softened(total.traced()[0][1]) is scores


def _softened(value: Value) -> Value | None:
    """Of what a value is a softmax, masked perhaps."""
    operation = _before(value, MOVES | {Kind.COPY, Kind.MUL}).operation
    if operation is None or operation.kind is not Kind.SOFTMAX:
        return None
    return operation.traced()[0][1].origin


def is_logarithm_of_softmax(operation: Operation) -> bool:
    """Whether it is the logarithm of softmax probabilities, of some of them perhaps."""
    made: Operation | None = operation
    while made is not None and made.name in ("log", "clamp", "clamp_min", "clip"):
        made = _before(made.traced()[0][1], MOVES | {Kind.COPY, Kind.ADD, Kind.SUM}).operation
    return operation.name == "log" and made is not None and made.kind is Kind.SOFTMAX


def _exponent(value: Value) -> Value | None:
    """Of what a value is the exponential function, masked perhaps."""
    operation = _before(value, MOVES | {Kind.COPY, Kind.MUL}).operation
    if operation is None or operation.name != "exp":
        return None
    return operation.traced()[0][1].origin


def _leave_out_shifts(value: Value, dim: int) -> None:
    """Notes what is added to all scores of a softmax alike, so that it does not depend on it."""
    while (operation := value.operation) is not None and operation.kind in _TO_SCORES:
        for operand in operation.operands if operation.kind in (Kind.ADD, Kind.SUB) else ():
            known = operand.value is not None or operand.data is not None
            if known and (len(operand.size) < -dim or operand.size[dim] == 1 < value.shape[dim]):
                operation.shift = operand
        left = [v for operand, v in operation.traced() if operand is not operation.shift]
        if len(left) != 1:
            return
        (value,) = left


def _dim_of_logarithm(value: Value) -> int | None:
    operation = value.operation
    if operation is not None and operation.kind is Kind.SUB and len(operation.traced()) == 2:
        signal, subtracted = operation.argument("input"), operation.argument("other")
        if not is_statistic_of(subtracted.value, signal.value, Kind.SMOOTH_MAXIMUM):
            return None
        operation = _before(subtracted.value, _TO_SUM).operation
    elif operation is None or operation.kind is not Kind.LOG_SOFTMAX:
        return None
    return None if operation is None else operation.dim(len(value.shape))


@dataclass(frozen=True)
class Normalisation:
    """How a fused norm normalises.

    Attributes:
        rows: a shape for the input in which each row is normalised by itself.
        scale: a shape for the weights in which they broadcast to the input.
        eps: what is added to the variance.
        centred: whether the mean is subtracted.
        over_samples: whether rows run over the samples, which then come second.
        by_constants: whether it divides by constants, as by running statistics.
    """

    rows: tuple[int, ...] = ()
    scale: tuple[int, ...] = ()
    eps: float = 0.0
    centred: bool = True
    over_samples: bool = False
    by_constants: bool = False

    def in_rows(self, tensor: Tensor) -> Tensor:
        """A tensor that lies as the norm's input, cut up into rows."""
        return (tensor.transpose(0, 1) if self.over_samples else tensor).reshape(self.rows)

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `in_rows`."""
        if not self.over_samples:
            return rows.reshape(shape)
        return rows.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)

    def inverse_deviation(self, tensor: Tensor) -> Tensor:
        """What each row of the norm's input is multiplied by."""
        rows = self.in_rows(tensor.to(accumulation_dtype(tensor.dtype)))
        if not self.centred:
            return (rows.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        # Far faster than `var`.
        _, _, inverse = torch.native_layer_norm(rows, rows.shape[-1:], None, None, self.eps)
        return inverse


def normalisation(operation: Operation) -> Normalisation | None:
    """How a fused norm normalises; None if that is not known."""
    known = _NORMS.get(operation.name)
    return None if known is None else known(operation.arguments)


def _features(arguments: Mapping[str, Any], *, centred: bool) -> Normalisation:
    size, shape, eps = arguments["input"].size, arguments["normalized_shape"], arguments.get("eps")
    if eps is None:
        dtype = accumulation_dtype(arguments["input"].dtype)
        eps = 1e-5 if centred else torch.finfo(dtype).eps
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return Normalisation((*size[: len(size) - len(shape)], prod(shape)), shape, eps, centred)


def _groups(arguments: Mapping[str, Any]) -> Normalisation:
    size = arguments["input"].size
    groups = arguments["num_groups"]
    rows = (size[0], groups, prod(size[1:]) // groups)
    return Normalisation(rows, _of_channels(size), arguments.get("eps", 1e-5))


def _channels(arguments: Mapping[str, Any]) -> Normalisation:
    if not arguments.get("use_input_stats", True):
        return Normalisation(by_constants=True)
    size = arguments["input"].size
    rows = (size[0], size[1], prod(size[2:]))
    return Normalisation(rows, _of_channels(size), arguments.get("eps", 1e-5))


def _batch(arguments: Mapping[str, Any]) -> Normalisation:
    if arguments.get("running_mean") is not None and not arguments.get("training"):
        return Normalisation(by_constants=True)
    size = arguments["input"].size
    eps = arguments.get("eps", 1e-5)
    rows = (size[1], size[0] * prod(size[2:]))
    return Normalisation(rows, _of_channels(size), eps, over_samples=True)


def _of_channels(size: torch.Size) -> tuple[int, ...]:
    return (-1, *[1] * (len(size) - 2))


_NORMS: dict[str, Callable[[Mapping[str, Any]], Normalisation]] = {
    **dict.fromkeys(("layer_norm", "native_layer_norm"), lambda a: _features(a, centred=True)),
    **dict.fromkeys(("rms_norm", "fused_rms_norm"), lambda a: _features(a, centred=False)),
    "group_norm": _groups,
    "instance_norm": _channels,
    "batch_norm": _batch,
}
