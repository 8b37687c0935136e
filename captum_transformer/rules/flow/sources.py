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
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.terms import (
    ADDITIONS,
    Count,
    has_constants,
    leaves_out,
    made,
    receiving,
    vanishes,
)
from captum_transformer.rules.propagate import unsupported
from captum_transformer.trace.applied_weights import applies_unread_weights
from captum_transformer.trace.features import sums_over_features
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Does, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of
from captum_transformer.trace.weighted_constants import mixes_by_constants
from captum_transformer.trace.writes import Overwritten, shown

# Kinds for which it is not known which tokens they mix.
_UNREADABLE = frozenset({Kind.TRANSFORM, Kind.SAMPLE, Kind.DERIVED, Kind.UNKNOWN})
# Kinds that add or multiply entry by entry: the result holds what any of the signals holds.
_JOINS = ADDITIONS | {Kind.MUL, Kind.DIV}


class Junction(NamedTuple):
    """The sources that each of several added, multiplied or compared signals passes on.

    Attributes:
        whole: for each signal the sources whose whole share it gets, as a bit set.
        shared: the sources whose share is divided among all signals that hold them.
    """

    whole: tuple[int, ...]
    shared: int

    @property
    def held(self) -> int:
        """The sources that any of the signals holds."""
        return functools.reduce(operator.or_, self.whole, self.shared)


class Held(NamedTuple):
    """The sources that a value holds directly, as bit sets of the sources' indices.

    Attributes:
        sources: the sources that it holds.
        terms: how many terms of each entry hold them; each source is in one of the sets.
        by_tokens: the sources that only some tokens hold: others were joined to them.
        by_picked: the sources that perhaps no token holds, as only some of such tokens were picked.
    """

    sources: int
    terms: tuple[tuple[int, Count], ...]
    by_tokens: int = 0
    by_picked: int = 0

    def among(self, sources: int) -> "Held":
        """Returns the same for some of the sources only."""
        terms = tuple((both, count) for of, count in self.terms if (both := of & sources))
        return Held(self.sources & sources, terms, *(of & sources for of in self[2:]))

    @classmethod
    def alike(cls, sources: int) -> "Held":
        """Creates an instance for sources that each entry of a value holds once."""
        return cls(sources, ((sources, 1),))


class Sources:
    """Finds the sources that each value of a forward pass holds.

    Args:
        tape: the traced forward pass.

    Attributes:
        values: the sources that are outputs of operations, with these operations.
    """

    def __init__(self, tape: Tape) -> None:
        self._operations = tape.operations
        self._read = 0
        self._held: dict[Value, Held] = {}
        self._junctions: dict[Operation, Junction] = {}
        self._overwritten = Overwritten()
        self.values: dict[Value, Operation] = {}

    def of(self, value: Value) -> Held:
        """Returns what a value holds."""
        if value not in self._held:
            self._read_on()
        return self._known(value)

    def held(self, value: Value) -> int:
        """Returns the sources that a value holds."""
        return self.of(value).sources

    def junction(self, operation: Operation) -> Junction | None:
        """Returns what each signal gets where several signals meet, or None if they don't."""
        if operation.index >= self._read:
            self._read_on()
        return self._junctions.get(operation)

    def _read_on(self) -> None:
        while self._read < len(self._operations):
            operation = self._operations[self._read]
            self._read += 1
            outputs = [output for output in operation.outputs if output is not None]
            if is_source(operation):
                self.values |= dict.fromkeys(outputs, operation)
                self._held |= {output: Held.alike(1 << output.index) for output in outputs}
            else:
                self._read_one(operation, outputs)

    def _known(self, value: Value) -> Held:
        return self._held.get(value) or Held.alike(
            1 << value.index if value.operation is None else 0
        )

    def _read_one(self, operation: Operation, outputs: Sequence[Value]) -> None:
        values = [value for _, value in receiving(operation)]
        before, hands_on = [self._known(value) for value in values], False
        view = view_of(operation, outputs[0]) if len(values) == len(outputs) == 1 else None
        if view is not None:
            source, hands_on = shown(values[0], view)
            before = [Held.alike(0) if source is None else self._known(source)]
        elif operation.kind is Kind.MOVE and (written := self._overwritten(operation)) is not None:
            left = functools.reduce(operator.or_, (self._known(v).sources for v in written), 0)
            before = [held.among(left) for held in before]
        if len(before) == 1 and (hands_on or _hands_on(operation, values[0], before[0])):
            self._held |= dict.fromkeys(outputs, before[0])
            return
        junction = None
        if len(values) > 1 and operation.kind not in MOVES and operation.kind is not Kind.MAXIMUM:
            junction = self._junctions[operation] = _junction(operation, values, before)
        alike = aligned(before)
        tokens, picked = (
            functools.reduce(operator.or_, column, 0)
            for column in zip((0, 0), *(held[2:] for held in before), strict=True)
        )
        if operation.kind in MOVES and len(operation.operands) > 1:
            constants = len(values) < len(operation.operands)
            tokens |= sum(found for terms, found in alike.items() if constants or 0 in terms)
        for output in outputs:
            held: dict[Count, int] = {}
            for of, found in alike.items():
                for part, some in _passing(of, found, junction):
                    count = made(operation, output, part)
                    held[count] = held.get(count, 0) | some
            held.pop(0, None)
            some = functools.reduce(operator.or_, held.values(), 0)
            left = operation.kind in MOVES and tokens and leaves_out(values, output)
            terms = tuple((sources, count) for count, sources in held.items())
            self._held[output] = Held(some, terms, tokens, picked | tokens * bool(left))


def aligned(helds: Sequence[Held], key: int = -1) -> dict[tuple[Count, ...], int]:
    """Groups sources that several values hold in the same way, by the terms of each value."""
    key &= functools.reduce(operator.or_, (held.sources for held in helds), 0)
    parts: dict[tuple[Count, ...], int] = {(): key} if key else {}
    for held in helds:
        parts = {
            (*before, terms): both
            for before, found in parts.items()
            for sources, terms in (*held.terms, (~held.sources, 0))
            if (both := found & sources)
        }
    return parts


def _hands_on(operation: Operation, value: Value, held: Held) -> bool:
    """Returns whether an output holds exactly what its only signal holds, entry by entry."""
    kind, output = operation.kind, operation.outputs[0]
    alike = len(held.terms) == 1 and held.terms[0][1] == 1
    if kind in MOVES:
        left = held.by_tokens and any(o and leaves_out([value], o) for o in operation.outputs)
        return alike and not left and not has_constants(operation)
    if kind is Kind.MUL and (len(operation.operands) > 1 or vanishes(operation)):
        return False
    return alike or (kind in BY_ENTRY and output is not None and value.shape == output.shape)


def _passing(
    terms: tuple[Count, ...], found: int, junction: Junction | None
) -> Iterator[tuple[tuple[Count, ...], int]]:
    """Groups sources by the signals that pass them on; the terms of other signals are zero."""
    shared = found if junction is None else found & junction.shared
    if shared:
        yield terms, shared
    for place, whole in enumerate(junction.whole if junction else ()):
        if own := found & whole:
            yield (*[0] * place, terms[place], *[0] * (len(terms) - place - 1)), own


def is_source(operation: Operation) -> bool:
    """Whether a flow starts anew at an operation: attention among tokens, or unreadable mixing."""
    if operation.attention is not None:
        return not operation.attention.among_channels
    output = operation.outputs[0]
    mixes = output is not None and output.mixtures >> operation.index & 1
    return operation.kind in _UNREADABLE or bool(mixes and not sums_over_features(operation))


def unread(operation: Operation) -> UnsupportedOperationError:
    """The error for operations that mix tokens but cannot be read as attention."""
    if applies_unread_weights(operation):
        return unsupported(
            operation,
            "it applies softmax weights in a layout that is not read as attention, as of sliding "
            "windows in chunks, or where it is not known which dimensions are heads, so it is "
            "unknown which tokens each of them mixes",
        )
    if operation.kind is Kind.UNKNOWN:
        return unsupported(operation, "it is not in the table of operations")
    if mixes_by_constants(operation):
        return unsupported(
            operation,
            "it applies attention weights to constants, such as relative values, and their queries "
            "and keys mix tokens without a map of attention, so the contribution of its branch "
            "would be lost",
        )
    if operation.kind is Kind.MUL:
        return unsupported(
            operation,
            "softmax weights multiply a signal, and no sum over what they are weights of is read "
            "as attention, so the contribution of its branch would be lost",
        )
    mixed = "several signals" if len(operation.traced()) > 1 else "a signal"
    return unsupported(
        operation,
        f"it mixes {mixed}, and it is unknown which of their tokens it mixes (attention must be a "
        "softmax over keys applied to values), so the contribution of its branch would be lost",
    )


def _junction(operation: Operation, values: Sequence[Value], before: Sequence[Held]) -> Junction:
    """Gives each source to the signal that holds it.

    If several signals hold it, it goes to the one that the others were made of, such as a skip,
    which is the token itself; otherwise to the one that holds all that the others hold, and also
    attention; otherwise to all of them in parts.
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
    if operation.kind.does is Does.MIXES and not operation.spreads:
        return None  # the similarity of signals is a feature of neither

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
    if skip is not None or not (operation.kind in _JOINS or operation.spreads):
        return skip
    return only(
        [p for p in holders if all(helds[o] | helds[p] == helds[p] != helds[o] for o in others[p])]
    )
