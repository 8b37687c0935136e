"""Norms and softmaxes written by hand: what divides a signal, or is subtracted from it."""

import math
from collections.abc import Collection, Iterator
from itertools import permutations
from typing import NamedTuple

import torch

from captum_transformer.trace.axis import runs_along
from captum_transformer.trace.kinds import COPIES, ENTRIES_ALONE, MOVES, Form, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.quotients import is_divided, is_gate_by_formula, picks, quotient_of
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of

_SCALES = frozenset({Kind.MUL, Kind.DIV})
_SUMS = frozenset({Kind.ADD, Kind.SUB})
# What softmax weights go through before they are divided by their sum, if some are left out.
_TO_WEIGHTS = COPIES | {Kind.MUL, Kind.CHOICE}
_TO_SUM = COPIES | {Kind.ADD, Kind.ENTRYWISE, Kind.RECIPROCAL}
_TOTALS = frozenset({Kind.SUM, Kind.DISTANCE})
_MIXES = frozenset({Kind.SUM, Kind.MEAN, Kind.POOL, Kind.DISTANCE, Kind.PRODUCT})
_OF_ROWS = frozenset({Kind.MAXIMUM, Kind.SMOOTH_MAXIMUM})
# Kinds that compare with constants, and that write to places that were picked.
_PLACES = frozenset({Kind.MAXIMUM, Kind.SUM_AT_INDICES})
_LINEAR = (ENTRIES_ALONE - {Kind.ENTRYWISE}) | MOVES | _MIXES


def takes_number(operation: Operation) -> bool:
    """Whether it adds a number to a signal, or multiplies it with one."""
    return operation.kind in _SCALES | _SUMS and len(operation.operands) == 1


def signal_of(operation: Operation) -> list[bool] | None:
    """Returns, for each traced operand, whether it is the signal in a step of a norm or softmax.

    None if the operation is not such a step; division by a gate, for example, is not one.
    """
    if operation.kind in _SUMS:
        found = (s for s in subtracted(operation) if is_mean(s) or _log_sum_exp_dim(s) is not None)
        step = next(found, None)
        return step and [operand is step.operand for operand, _ in operation.traced()]
    are_signals = is_divided(operation)
    if are_signals is None:
        return None
    parts = zip(operation.traced(), are_signals, strict=True)
    gates = any(is_gate_by_formula(value) for (_, value), is_signal in parts if not is_signal)
    return None if gates else are_signals


class Subtracted(NamedTuple):
    """What a sum or a difference subtracts from a signal, and was made from that signal."""

    operand: Operand  # the signal
    signal: Value
    value: Value  # what is subtracted
    made: Operation  # what made it, up to factors, signs and rearrangements
    number: float  # the factor with which that is subtracted; zero if not known


def subtracted(operation: Operation | None) -> Iterator[Subtracted]:
    """Yields the statistics of a signal that an operation subtracts from that signal."""
    if operation is None or operation.kind not in _SUMS or operation.argument("alpha", 1) != 1:
        return
    sign = 1.0 if operation.kind is Kind.SUB else -1.0
    for (operand, signal), (_, value) in permutations(operation.traced(), 2):
        made, number = _multiple(value)
        whole, part = quotient_of(signal.operation), quotient_of(made)
        if whole is not None and part is not None and whole.is_by_same(part):
            # As in x / s - mean(x) / s, which is (x - mean(x)) / s.
            signal = whole.signal
            made, times = _multiple(part.signal)
            number *= times
        statistic = None if made is None else made.outputs[0]
        if made is None or statistic is None or statistic.shape == signal.shape:
            continue
        if value.descends_from(_unshifted(signal)):
            yield Subtracted(operand, signal, value, made, number * sign)


def _unshifted(value: Value) -> Value:
    """Returns the signal before something that its rows have in common was added to it."""
    value = value.origin
    while (operation := value.operation) is not None and operation.kind in _SUMS:
        whole = [source for _, source in operation.traced() if source.shape == value.shape]
        if len(whole) != 1:
            break
        value = whole[0].origin
    return value


def _multiple(value: Value) -> tuple[Operation | None, float]:
    """Returns the operation that made a value up to a factor, and that factor, zero if unknown."""
    chain: list[Operation] = []
    while (operation := value.operation) is not None and len(operation.traced()) == 1:
        if operation.kind in _SCALES | {Kind.HOMOGENEOUS} and len(operation.operands) == 1:
            chain.append(operation)
        elif operation.kind not in COPIES:
            break
        ((_, value),) = operation.traced()
    if not chain:
        return value.operation, 1.0
    ends = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for operation in reversed(chain):
        (ends,) = operation.replay([ends])
    number, other = ends.tolist()
    return value.operation, number if other == -number else 0.0


def is_mean(step: Subtracted) -> bool | None:
    """Whether each row's own mean is subtracted, as in a LayerNorm; None if that is unknown.

    A mean over tokens alone does not count.
    """
    made, number = step.made, step.number
    ((_, source), *_) = made.traced()
    dims = made.along(len(source.shape)) or ()
    if made.kind is Kind.SUM:
        number *= math.prod(source.shape[dim] for dim in dims)
    elif made.kind is not Kind.MEAN:
        return False
    of_rows = source.origin is step.signal.origin and _row(source, dims) == step.value.shape
    return of_rows and math.isclose(number, 1.0) and _along_features(source, dims)


def _row(value: Value, dims: Collection[int]) -> torch.Size:
    return torch.Size(1 if dim in dims else length for dim, length in enumerate(value.shape))


def _along_features(value: Value, dims: Collection[int]) -> bool | None:
    """Whether any of the dimensions runs along features, or None if that is not known."""
    known, before = value.features or (), value.origin.features or ()
    if known and math.prod(a.size for a in known) >= math.prod(a.size for a in before):
        return any(axis.dim(value.shape) in dims for axis in known)
    source = value
    while before and source is not value.origin and (operation := source.operation) is not None:
        view = view_of(operation, source)
        if operation.kind is not Kind.COPY and (view is None or not view.is_contiguous()):
            return None
        ((_, source),) = operation.traced()
    return any(runs_along(a, value.shape, dim) for a in before for dim in dims) if before else None


def _log_sum_exp_dim(step: Subtracted) -> int | None:
    """Returns the dimension of a log-sum-exp, or None if something else is subtracted."""
    made, signal = step.made, step.signal
    ((_, source), *others) = made.traced()
    total = _total(source) if made.form is Form.LOGARITHM else made
    if total is None or others or step.number != 1:
        return None
    scores = (
        source.origin
        if made.kind is Kind.SMOOTH_MAXIMUM
        else _argument(total.traced()[0][1], Form.EXPONENTIAL)
    )
    dim = total.dim(len(signal.shape))
    known = dim is not None and _row(signal, [dim]) == step.value.shape
    return _shifted(signal.origin, dim) if known and scores is signal.origin else None


def subtracts_unknown(operation: Operation) -> bool:
    """Whether it subtracts a statistic of the signal's rows that is not recognised.

    Maxima and log-sum-exps count too: they belong to a softmax.
    """
    return any(
        is_mean(step) is None
        or made.form is Form.LOGARITHM
        or (made.kind in _OF_ROWS and step.number > 0)
        for step in subtracted(operation)
        for made in _made_of(step.value, _unshifted(step.signal))
    )


def _made_of(value: Value, *signals: Value) -> Iterator[Operation]:
    """Yields the operations that made a value, back to signals, layers and entrywise functions.

    It goes back to signals as they were before they were masked, scaled or moved.
    """
    pending, seen, until = [value], set[Value](), set(signals)
    while pending:
        value = pending.pop()
        operation = value.operation
        if operation is None or value in seen:
            continue
        seen.add(value)
        yield operation
        sources = [source for _, source in operation.traced()]
        alone = operation.kind in MOVES or len(sources) == 1
        passes = operation.kind in _LINEAR or (alone and operation.kind in _PLACES)
        power = operation.form is Form.POWER
        if not (passes or power) or any(o.role is Role.WEIGHT for o in operation.operands):
            continue
        if value in until and not power:
            if not alone or operation.kind in _MIXES:
                continue
            until.update(sources)
        pending += sources


def softmax_dim(operation: Operation) -> int | None:
    """Returns the dimension of a softmax, also one written by hand, or None if it is not one.

    Written by hand, it is exponentials over their sum, or the exponential of a log-softmax.
    """
    traced = operation.traced()
    if operation.kind is Kind.SOFTMAX:
        output = operation.outputs[0]
        dim = None if output is None else operation.dim(len(output.shape))
        return _shifted(traced[0][1].origin, dim) if traced else dim
    if operation.kind is Kind.ENTRYWISE:
        if operation.form is not Form.EXPONENTIAL:
            return None
        ((_, value),) = traced
        made = value.operation
        if made is not None and made.kind is Kind.LOG_SOFTMAX:
            return made.dim(len(value.shape))
        return next((d for d in map(_log_sum_exp_dim, subtracted(made)) if d is not None), None)
    found = _over_sum(operation) if operation.kind in _SCALES else None
    return None if found is None else _shifted(found[0], found[1].dim(len(traced[0][1].shape)))


def sums_to_one_again(operation: Operation, *, in_rows: bool = True) -> bool:
    """Whether it divides softmax weights, or those that a mask or a choice leaves, by their sum.

    Args:
        operation: the operation.
        in_rows: only count sums of the weights that the softmax normalised together. Those of
            several rows, such as of all queries for one key, make a norm of the weights.
    """
    found = quotient_of(operation)
    scores = None if found is None else _argument(found.signal, Kind.SOFTMAX)
    if found is None or scores is None:
        return False
    return _sums_weights(found.divisor, scores, in_rows=in_rows)


def _over_sum(operation: Operation) -> tuple[Value, Operation] | None:
    """Returns the argument of an exponential that is divided by its own sum, and that sum."""
    found = quotient_of(operation)
    if found is None:
        return None
    scores, total = _argument(found.signal, Form.EXPONENTIAL), _total(found.divisor)
    if scores is None or total is None:
        return None
    summed = _argument(total.traced()[0][1], Form.EXPONENTIAL)
    return (scores, total) if summed is scores else None


def _before(value: Value, kinds: Collection[Kind]) -> Value:
    """Goes back through operations of some kinds on one signal, and returns the value before."""
    while (operation := value.operation) is not None and operation.kind in kinds:
        traced = operation.traced()
        if len(traced) != 1:
            break
        ((_, value),) = traced
    return value


def _argument(value: Value, what: Form | Kind) -> Value | None:
    """Returns the argument of the exponential or softmax that a value is, or some entries of."""
    operation = _before(value, _TO_WEIGHTS).operation
    if operation is None or what not in (operation.form, operation.kind):
        return None
    return operation.traced()[0][1].origin


def _total(value: Value) -> Operation | None:
    """Returns the sum that a value was made from, or None."""
    total = _before(value, _TO_SUM).operation
    return total if total is not None and total.kind in _TOTALS else None


def _sums_weights(value: Value, scores: Value, *, in_rows: bool) -> bool:
    """Whether a value is the sum of some softmax weights of scores."""
    total = _before(value, _TO_SUM).operation
    terms = [] if total is None else [source for _, source in total.traced()]
    if total is not None and total.kind is Kind.ADD:
        return all(
            _sums_weights(term, scores, in_rows=in_rows) or _is_weight(term, scores)
            for term in terms
        )
    if total is None or total.kind not in _TOTALS:
        return False
    (term, *_) = terms
    dim = None if term.keys is None or not in_rows else term.keys.dim(term.shape)
    of_row = dim is None or dim in (total.along(len(term.shape)) or ())
    return of_row and _argument(term, Kind.SOFTMAX) is scores


def _is_weight(value: Value, scores: Value) -> bool:
    """Whether a value holds a single weight of each row."""
    return value.keys is None and _argument(_before(value, _TO_SUM), Kind.SOFTMAX) is scores


def sums_exponentials(value: Value, *signals: Value) -> bool:
    """Whether the divisor of signals is made from sums of exponentials, summed in any way."""
    made = list(_made_of(value, *signals))
    exponentials = any(operation.form is Form.EXPONENTIAL for operation in made)
    return exponentials and any(one.kind in _MIXES or picks(one) for one in made)


def is_logarithm_of_softmax(operation: Operation) -> bool:
    """Whether it is the logarithm of softmax probabilities, possibly of only some of them."""
    made: Operation | None = operation
    while made is not None and made.form in (Form.LOGARITHM, Form.POWER):
        made = _before(made.traced()[0][1], COPIES | {Kind.ADD, Kind.SUM}).operation
    return operation.form is Form.LOGARITHM and made is not None and made.kind is Kind.SOFTMAX


def _shifted(value: Value, dim: int | None) -> int | None:
    """Returns the dimension of a softmax, and notes the terms that all its scores share."""
    while dim is not None and (operation := value.operation) is not None:
        if operation.kind not in _SUMS | _SCALES | {Kind.COPY}:
            break
        ahead = dim - len(value.shape)
        for operand in operation.operands if operation.kind in _SUMS else ():
            known = operand.value is not None or operand.is_kept
            size = operand.size
            if known and (len(size) < -ahead or size[ahead] == 1 < value.shape[dim]):
                operation.shift = operand
        left = [v for operand, v in operation.traced() if operand is not operation.shift]
        if len(left) != 1 or left[0].shape != value.shape:
            break
        (value,) = left
    return dim
