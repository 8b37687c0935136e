"""The principle of the token flow: each distinct sequence of attention calls counts once.

A value *holds* a source directly if a path without attention leads to it; sources are the inputs
and the outputs of attention calls. A token's relevance is that of the sources that it holds, each
counted once, however many such paths there are:

    R(token) = the sum over the sources d that it holds of P(token, d) R(d)

and behind an attention call with the map A it is A R(values). With a skip beside each call that is
the papers' ``(I + A_L) ... (I + A_1)``. P says where in the source a token's share lies. It adds up
to one: where several signals that hold a source meet, `Junction` says which of them passes it on.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

from captum_transformer.trace.axis import Axis
from captum_transformer.trace.features import is_linear_layer, sums_over_features
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Does, Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.statistics import signal_of
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.views import views_of

# Of these it is not known which tokens they tie.
_UNREADABLE = frozenset({Kind.TRANSFORM, Kind.SAMPLE, Kind.DERIVED, Kind.UNKNOWN})
# What is added or multiplied entry by entry: it holds what any of its signals does.
_JOINS = frozenset({Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV})


class Junction(NamedTuple):
    """Which sources each of several signals passes on that are added, multiplied or compared.

    Attributes:
        whole: for each of them the sources whose share it gets as a whole, as a bit set.
        shared: the sources whose share is divided among all that hold them.
    """

    whole: tuple[int, ...]
    shared: int

    @property
    def held(self) -> int:
        """The sources that any of the signals holds."""
        return functools.reduce(operator.or_, self.whole, self.shared)


class Held(NamedTuple):
    """What a value holds directly, as bit sets of the sources' indices.

    Attributes:
        sources: the sources that it holds.
        by_features: those of them that only some features of a token hold.
        by_stacked: those that only some of the signals in a stack hold.
        by_tokens: those that only some tokens hold: others were joined to them.
        by_picked: those that perhaps no token holds, where some were picked of such tokens.
    """

    sources: int
    by_features: int = 0
    by_stacked: int = 0
    by_tokens: int = 0
    by_picked: int = 0


class Sources:
    """What each value of a forward pass holds.

    Args:
        tape: the traced forward pass.

    Attributes:
        values: the sources that are results of operations, with these.
    """

    def __init__(self, tape: Tape) -> None:
        self._operations = tape.operations
        self._read = 0
        self._held: dict[Value, Held] = {}
        # Where the signals lie that were joined to make a value, and what only some of them hold.
        self._joined: dict[Value, tuple[Axis, int]] = {}
        self._junctions: dict[Operation, Junction] = {}
        self.values: dict[Value, Operation] = {}

    def of(self, value: Value) -> Held:
        """What a value holds."""
        self._read_on()
        return self._known(value)

    def held(self, value: Value) -> int:
        """The sources that a value holds."""
        return self.of(value).sources

    def joined(self, value: Value) -> int:
        """What only some of the signals hold that were joined, and perhaps are summed up later."""
        return self._joined.get(value, (None, 0))[1]

    def junction(self, operation: Operation) -> Junction | None:
        """What each signal gets where several meet; None where they do not."""
        self._read_on()
        return self._junctions.get(operation)

    def _read_on(self) -> None:
        while self._read < len(self._operations):
            operation = self._operations[self._read]
            self._read += 1
            outputs = [output for output in operation.outputs if output is not None]
            if is_source(operation):
                self.values |= dict.fromkeys(outputs, operation)
                self._held |= {output: Held(1 << output.index) for output in outputs}
            elif operation.kind in MOVES and len(operation.operands) == len(operation.outputs) > 1:
                # Each output shows one of the signals, as they are broadcast to one another.
                for operand, output in zip(operation.operands, operation.outputs, strict=True):
                    if operand.value is not None and output is not None:
                        self._held[output] = self._known(operand.value)
            else:
                self._held |= dict.fromkeys(outputs, self._after(operation))

    def _known(self, value: Value) -> Held:
        return self._held.get(value) or Held(1 << value.index if value.operation is None else 0)

    def _after(self, operation: Operation) -> Held:
        values = [value for _, value in receiving(operation)]
        before = [self._known(value) for value in values]
        columns = zip(Held(0), *before, strict=True)
        all_held, features, stacked, tokens, picked = (
            functools.reduce(operator.or_, column) for column in columns
        )
        if operation.kind in MOVES:
            lacking = 0
            if len(operation.operands) > 1:
                common = functools.reduce(operator.and_, (of.sources for of in before), all_held)
                lacking = all_held & ~common if len(values) == len(operation.operands) else all_held
            stacked |= self._folded(operation, lacking)
            if operation.kind is Kind.STACK:
                stacked |= lacking
            elif lacking and _joins_features(operation, values):
                features |= lacking
            tokens |= lacking
            if tokens and any(
                _leaves_out(values, output) for output in operation.outputs if output
            ):
                picked |= tokens
            return Held(all_held, features, stacked, tokens, picked)
        if len(values) > 1 and operation.kind is not Kind.MAXIMUM:  # the larger one is chosen
            self._junctions[operation] = _junction(operation, values, before)
            for of in before:
                features &= of.by_features | ~of.sources
            return Held(all_held, features if operation.kind in _JOINS else 0, 0, tokens, picked)
        if operation.kind is Kind.MUL and 0 in (*operation.args, *operation.kwargs.values()):
            return Held(0)
        by_entry = operation.kind in BY_ENTRY
        keeps_apart = by_entry or is_linear_layer(operation)
        if by_entry:
            self._folded(operation, 0)
        return Held(all_held, features * by_entry, stacked * keeps_apart, tokens, picked)

    def _folded(self, operation: Operation, lacking: int) -> int:
        """What only some of several signals hold that were joined and lie as in a stack now."""
        output, traced = operation.outputs[0], operation.traced()
        if output is None or len(operation.outputs) > 1 or not traced:
            return 0
        axis: Axis | None = None
        value = traced[0][1]
        if operation.kind is Kind.CONCATENATE:
            dim = operation.dim(len(output.shape), 0) or 0
            if len({operand.size for operand in operation.operands}) == 1:
                axis = Axis.of(output.shape, dim, len(operation.operands))
        elif value in self._joined:
            axis, lacking = self._joined[value]
            views = views_of(operation)
            if views is not None:
                axis = axis.in_view(views[0])
            elif operation.kind not in BY_ENTRY or output.shape != value.shape:
                axis = None
        if axis is None or not lacking:
            return 0
        self._joined[output] = axis, lacking
        return (
            lacking if axis in (Axis.of(output.shape, d) for d in range(len(output.shape))) else 0
        )


def _leaves_out(values: Sequence[Value], output: Value) -> bool:
    """Whether a rearrangement has fewer tokens than before."""
    sizes = [value.shape.numel() for value in (output, *values)]
    if all(value.features for value in (output, *values)):
        widths = (math.prod(axis.size for axis in v.features or ()) for v in (output, *values))
        sizes = [size // width for size, width in zip(sizes, widths, strict=True)]
    return sizes[0] < max(sizes)


def is_source(operation: Operation) -> bool:
    """Whether a flow starts anew behind it: attention among tokens, or what mixes them unread."""
    if operation.attention is not None:
        return not operation.attention.among_channels
    output = operation.outputs[0]
    mixes = output is not None and output.mixtures >> operation.index & 1
    return operation.kind in _UNREADABLE or bool(mixes and not sums_over_features(operation))


def receiving(operation: Operation) -> list[tuple[Operand, Value]]:
    """The signals that get a part of the shares: no denominators, and of attention the values."""
    if operation.attention is not None:
        operand = operation.attention.value
        return [] if operand.value is None else [(operand, operand.value)]
    traced = operation.traced()
    signal = signal_of(operation)
    return (
        traced
        if signal is None
        else [t for t, is_one in zip(traced, signal, strict=True) if is_one]
    )


def _joins_features(operation: Operation, values: Sequence[Value]) -> bool:
    """Whether different features of a token may come from different signals."""
    if operation.kind is not Kind.CONCATENATE:
        return len(values) > 1
    dim = operation.dim(len(values[0].shape), 0)
    return not all(v.features and Axis.of(v.shape, dim) not in v.features for v in values)


def _junction(operation: Operation, values: Sequence[Value], before: Sequence[Held]) -> Junction:
    """Gives each source to the signal that holds it.

    If several do, it goes to the one that the others were made of, as a skip, which is the token
    itself; or else to the one that holds all that the others hold, and attention besides; or else
    to all of them in parts.
    """
    helds, several = [of.sources for of in before], 0
    for place, held in enumerate(helds):
        for other in helds[:place]:
            several |= held & other
    whole, shared = [held & ~several for held in helds], 0
    while several:
        source = several & -several
        holders = [place for place, held in enumerate(helds) if held & source]
        alike = functools.reduce(operator.and_, (helds[place] for place in holders), several)
        for place, held in enumerate(helds):
            alike &= -1 if place in holders else ~held
        several &= ~alike
        owner = _owner(operation, {place: values[place] for place in holders}, helds)
        if owner is None:
            shared |= alike
        else:
            whole[owner] |= alike
    return Junction(tuple(whole), shared)


def _owner(operation: Operation, holders: dict[int, Value], helds: Sequence[int]) -> int | None:
    if operation.kind.does is Does.MIXES:
        return None  # how alike they are is a feature of neither

    def only(places: list[int]) -> int | None:
        return places[0] if len(places) == 1 else None

    others = {place: [o for o in holders if o != place] for place in holders}
    skip = only(
        [
            p
            for p, v in holders.items()
            if all(holders[o].descends_from(v.origin) for o in others[p])
        ]
    )
    if skip is not None or operation.kind not in _JOINS:
        return skip
    return only(
        [p for p in holders if all(helds[o] | helds[p] == helds[p] != helds[o] for o in others[p])]
    )
