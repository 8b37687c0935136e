"""How many terms of each entry hold a source, where signals were joined, masked or added."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from captum_transformer.rules.flow.joined import (
    Axes,
    along_features,
    carried,
    joined_along,
)
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.dimensions import image, passage
from captum_transformer.trace.features import feature_dims
from captum_transformer.trace.kinds import AS_OTHERS, BY_ENTRY, MOVES, Form, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.stacked import joins_tokens
from captum_transformer.trace.statistics import signal_of
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import views_of

ADDITIONS = frozenset({Kind.ADD, Kind.SUB})


@dataclass(frozen=True, eq=False, slots=True)
class Terms:
    """How many terms of each entry of a value hold some sources, as a tree of its operations.

    `presence.Counts` computes it where that matters: not if only tokens lack a source that others
    were joined to.

    Attributes:
        value: the value.
        of: for each signal that the value was made of, how many terms hold them; a number if all
            entries are alike.
        axes: the axes along which joined signals lie; None if they are not known.
        joined: whether signals were joined, and only some of them hold the sources.
        by_features: whether only some features of a token may hold them.
        by_stacked: whether only some of the signals in a stack hold them.
    """

    value: Value
    of: "tuple[Count, ...]"
    axes: Axes = None
    joined: bool = False
    by_features: bool = False
    by_stacked: bool = False

    @property
    def index(self) -> int:
        """The place of the value in the order of values."""
        return self.value.index

    @property
    def apart(self) -> bool:
        """Whether not all features or stacked signals hold the sources."""
        return self.by_features or self.by_stacked


# A number if all entries are alike.
Count: TypeAlias = Terms | int


def made(operation: Operation, output: Value, terms: tuple[Count, ...]) -> Count:
    """Returns how many terms of an output's entries hold sources, from those of its signals."""
    nodes = [of for of in terms if isinstance(of, Terms)]
    if operation.kind in MOVES:
        if not nodes and len(set(terms)) == 1 and not has_constants(operation):
            return terms[0]
        return _moved(operation, output, terms, nodes)
    if operation.kind not in BY_ENTRY:
        return _mixed(operation, output, terms, nodes)
    if vanishes(operation):
        return 0
    held = [of for of in terms if of != 0]
    scaled = operation.kind is Kind.MUL and len(terms) < len(operation.operands)
    if not nodes and not scaled:
        numbers = (of for of in terms if isinstance(of, int))
        return sum(numbers) if operation.kind in ADDITIONS or len(terms) == 1 else 1
    if len(held) == 1 and not scaled and (not nodes or nodes[0].value.shape == output.shape):
        # What is added to a stack is more than one of its signals.
        added = len(terms) > 1 and nodes and nodes[0].axes is not None
        return replace(nodes[0], axes=None, by_stacked=False) if added else held[0]
    every = len(held) == len(nodes)
    return Terms(
        output,
        terms,
        nodes[0].axes if every and len(nodes) == 1 else None,
        joined=any(of.joined for of in nodes),
        by_features=every and all(of.by_features for of in nodes),
        by_stacked=every and len(terms) == 1 and nodes[0].by_stacked,
    )


def _mixed(
    operation: Operation, output: Value, terms: tuple[Count, ...], nodes: Sequence[Terms]
) -> Terms | int:
    """Returns the terms of a mixed output: parallel signals stay apart, joined features may not."""
    if not nodes or operation.attention is not None:
        return 1
    traced, joined, by_features, by_stacked = receiving(operation), False, False, False
    axes: Axes = None
    for (operand, value), of in zip(traced, terms, strict=True):
        if not isinstance(of, Terms):
            continue
        if of.by_features:
            mixed = passage(operation, operand, len(output.shape)).mixed
            of_features = not set(mixed).isdisjoint(feature_dims(value))
            by_features |= value.features is not None and not of_features
        if of.axes is not None:
            found = (image(operation, operand, axis, output, None) for axis in of.axes)
            axes = tuple(filter(None, found))
        if of.axes is None or axes:
            joined |= of.joined and (bool(axes) or not of.by_features)
            by_stacked |= of.by_stacked
    if not (joined or by_features or by_stacked):
        return 1
    return Terms(output, terms, axes if len(traced) == 1 else None, joined, by_features, by_stacked)


def _moved(
    operation: Operation, output: Value, terms: tuple[Count, ...], nodes: Sequence[Terms]
) -> Terms:
    lacking = 0 in terms or has_constants(operation)
    before = [of.axes if isinstance(of, Terms) else () for of in terms]
    joined = joined_along(operation, output, before) if lacking else ()
    joins = lacking and operation.kind is not Kind.STACK and joins_features(operation, output)
    known, unknown, lost = list(joined or ()), joined is None, False
    for (operand, _), of in zip(receiving(operation), terms, strict=True):
        if isinstance(of, Terms):
            moved = carried(operation, operand, of.axes, output, stacked=of.by_stacked)
            unknown, lost = unknown or moved is None, lost or (moved is None and of.by_stacked)
            known += moved or ()
    axes = None if lost or (unknown and not known) else tuple(dict.fromkeys(known))
    dims = (Axis.of(output.shape, dim) for dim in range(len(output.shape)))
    stacks = not set(known).isdisjoint(dims) and not joins_tokens(operation)
    stacked = stacks or any(of.by_stacked for of in nodes)
    joins |= lost or (stacked and along_features(known, output))
    return Terms(
        output,
        terms,
        axes,
        joined=(lacking and 0 in terms) or any(of.joined for of in nodes),
        by_features=joins or any(of.by_features for of in nodes),
        by_stacked=stacked and axes != (),
    )


def has_constants(operation: Operation) -> bool:
    """Returns whether constants may fill entries of a rearrangement, or select entries of it."""
    if operation.kind is Kind.PAD:
        # Models whose windows may reach over the edge pad by zero entries if they don't.
        return any(width > 0 for width in operation.argument("pad"))
    signals = len(operation.traced())
    if operation.kind in (Kind.CONCATENATE, Kind.STACK):
        return len(operation.operands) > signals
    if signals > 1:
        return any(o.value is None and o.role is Role.SIGNAL for o in operation.operands)
    if operation.kind in AS_OTHERS or operation.form is Form.ORDERS:
        return False
    return views_of(operation) is None


def receiving(operation: Operation) -> list[tuple[Operand, Value]]:
    """Returns the signals that get shares: no denominators, and only the values of attention."""
    if operation.attention is not None:
        operand = operation.attention.value
        return [] if operand.value is None else [(operand, operand.value)]
    traced = operation.traced()
    if len(traced) < 2:
        return traced
    # Cached: it is asked several times in each pass, and the forward pass is complete.
    if operation.signals is None:
        signal = signal_of(operation) or [True] * len(traced)
        operation.signals = [t for t, is_one in zip(traced, signal, strict=True) if is_one]
    return operation.signals


def vanishes(operation: Operation) -> bool:
    """Returns whether an operation multiplies by a Python number that is zero."""
    return operation.kind is Kind.MUL and 0 in (*operation.args, *operation.kwargs.values())


def joins_features(operation: Operation, output: Value) -> bool:
    """Whether different features of a token may come from different signals, or from constants."""
    dims, ndim, given = feature_dims(output), len(output.shape), operation.arguments
    written = isinstance(given.get("source"), Operand)
    if not dims or len(dims) < len(output.features or ()) or ("brackets" in given and not written):
        return True
    for operand in operation.operands:
        if operand.role is Role.SIGNAL:
            to, mixed = passage(operation, operand, ndim)
            lengths = {place: operand.size[dim] for dim, place in enumerate(to)}
            if any(lengths.get(dim) != output.shape[dim] or dim in mixed for dim in dims):
                return True
        elif operand.role is Role.MASK or ("brackets" not in given and len(operand.size) > 1):
            before = len(operand.size) - ndim
            if any(before + dim >= 0 and operand.size[before + dim] > 1 for dim in dims):
                return True
    return False


def leaves_out(values: Sequence[Value], output: Value) -> bool:
    """Returns whether the output of a rearrangement has fewer tokens than an input."""
    sizes = [value.shape.numel() for value in (output, *values)]
    if all(value.features for value in (output, *values)):
        widths = (math.prod(axis.size for axis in v.features or ()) for v in (output, *values))
        sizes = [size // width for size, width in zip(sizes, widths, strict=True)]
    return sizes[0] < max(sizes)
