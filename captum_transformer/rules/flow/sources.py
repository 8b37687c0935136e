"""The principle of the token flow: each distinct sequence of attention calls counts once.

A value *holds* a source directly if a path without attention leads to it; sources are the inputs
and the outputs of attention calls. A token's relevance is that of the sources that it holds, each
counted once, however many such paths there are:

    R(token) = the sum over the sources d that it holds of P(token, d) R(d)

and behind an attention call with the map A it is A R(values). With a skip beside each call that is
the papers' ``(I + A_L) ... (I + A_1)``. P says where in the source a token's share lies. It adds up
to one: where several signals that hold a source meet, `Meeting` says which of them passes it on.
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from captum_transformer.trace.axis import Axis
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Does, Kind
from captum_transformer.trace.layout import sums_over_features
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.statistics import signal_of
from captum_transformer.trace.tape import Tape

# Of these it is not known which tokens they tie.
_UNREADABLE = frozenset({Kind.TRANSFORM, Kind.SAMPLE, Kind.DERIVED, Kind.UNKNOWN})
# What is added or multiplied entry by entry: it holds what any of its signals does.
_JOINS = frozenset({Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV, Kind.MAXIMUM})


class Meeting(NamedTuple):
    """Which sources each of several signals passes on that are added, multiplied or compared.

    Attributes:
        whole: for each of them the sources whose share it gets as a whole, as a bit set.
        shared: the sources whose share is divided among all that hold them.
    """

    whole: tuple[int, ...]
    shared: int


class Sources:
    """What each value of a forward pass holds, as bit sets of the sources' indices.

    Args:
        tape: the traced forward pass.
    """

    def __init__(self, tape: Tape) -> None:
        self._operations = tape.operations
        self._read = 0
        self._held: dict[Value, int] = {}
        self._split: dict[Value, int] = {}
        self._stacked: dict[Value, int] = {}
        self._meetings: dict[Operation, Meeting] = {}

    def held(self, value: Value) -> int:
        """The sources that a value holds directly."""
        self._read_on()
        return self._held.get(value, 1 << value.index if value.operation is None else 0)

    def partly_held(self, value: Value) -> int:
        """Those that only some of a token's features hold, or some of the signals in a stack."""
        self._read_on()
        return self._split.get(value, 0) | self._stacked.get(value, 0)

    def meeting(self, operation: Operation) -> Meeting | None:
        """What each signal gets where several meet; None where they do not."""
        self._read_on()
        return self._meetings.get(operation)

    def _read_on(self) -> None:
        while self._read < len(self._operations):
            operation = self._operations[self._read]
            self._read += 1
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        if is_source(operation):
            self._held |= {v: 1 << v.index for v in operation.outputs if v is not None}
            return
        values = [value for _, value in receiving(operation)]
        helds = [self._held.get(v, 1 << v.index if v.operation is None else 0) for v in values]
        held = functools.reduce(operator.or_, helds, 0)
        split = stacked = 0
        if operation.kind in MOVES:
            stacked = self._any(self._stacked, values)
            split = self._any(self._split, values)
            if len(operation.operands) > 1:
                lacking = held if len(values) < len(operation.operands) else 0
                lacking |= held & ~functools.reduce(operator.and_, helds, -1)
                if operation.kind is Kind.STACK:
                    stacked |= lacking
                elif _joins_features(operation, values):
                    split |= lacking
        elif len(values) > 1:
            self._meetings[operation] = _meeting(operation, values, helds)
            if operation.kind in _JOINS:
                split = self._any(self._split, values)
                for value, sources in zip(values, helds, strict=True):
                    split &= ~(sources & ~self._split.get(value, 0))
        elif operation.kind in BY_ENTRY:
            split, stacked = self._any(self._split, values), self._any(self._stacked, values)
        for output in operation.outputs:
            if output is not None:
                self._held[output] = held
                if split:
                    self._split[output] = split
                if stacked:
                    self._stacked[output] = stacked

    @staticmethod
    def _any(sets: dict[Value, int], values: Iterable[Value]) -> int:
        return functools.reduce(operator.or_, (sets.get(value, 0) for value in values), 0)


def is_source(operation: Operation) -> bool:
    """Whether a flow starts anew behind it: attention among tokens, or what ties them unread."""
    if operation.attention is not None:
        return not operation.attention.among_channels
    output = operation.outputs[0]
    ties = output is not None and output.mixtures >> operation.index & 1
    return operation.kind in _UNREADABLE or bool(ties and not sums_over_features(operation))


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


def _meeting(operation: Operation, values: Sequence[Value], helds: Sequence[int]) -> Meeting:
    """Gives each source to the signal that holds it.

    If several do, it goes to the one that the others were made of, as a skip, which is the token
    itself; or else to the one that holds all that the others hold, and attention besides; or else
    to all of them in parts.
    """
    several = 0
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
    return Meeting(tuple(whole), shared)


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
