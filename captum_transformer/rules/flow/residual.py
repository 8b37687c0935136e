"""Residual connections: what each operand of an addition gets of a token's share.

The papers' ``I + A`` counts a token itself once and every path through attention in full. Where
two signals meet, these rules keep it so, whatever the model writes down for it: a skip, a projected
skip, parallel branches, or a skip inside the branch of another one.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.streams import query_value
from captum_transformer.trace.tape import Tape

MEETINGS = frozenset({Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV})


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two signals that are added or multiplied.

    Attributes:
        due: the part of a share that each of them gets.
        skip: which of them is a skip whose tokens the other one's branch passes on as well, by a
            skip of its own, say; None if neither is.
        parallel: bit set of the tokens that attended in both of them side by side; zero if they
            did not.
    """

    due: tuple[float, float]
    skip: int | None
    parallel: int = 0


class Residuals:
    """The meetings of a forward pass, and which earlier tokens each value still is."""

    def __init__(self, tape: Tape) -> None:
        self._operations = tape.operations
        self._read = 0
        self._meetings: dict[Operation, Meeting] = {}
        self._passed_on: dict[Value, int] = {}
        # Of each attention call: the tokens that attend, and the calls that these come from.
        self._queries: dict[int, tuple[int, int]] = {}
        self._inputs = 0

    def __getitem__(self, operation: Operation) -> Meeting:
        """What is due at an operation on two signals."""
        self._read_on()
        return self._meetings[operation]

    def is_still(self, value: Value, earlier: Value) -> bool:
        """Whether a value's tokens are those of an earlier one, and not made of them by attention.

        Where attention has no skip beside it, its outputs are other tokens.
        """
        self._read_on()
        return bool(self._tokens(value) >> earlier.index & 1)

    def is_complete(self, operation: Operation, attending: Sequence[int]) -> bool:
        """Whether tokens meet all that they have attended to, so that rows can be normalised.

        Args:
            operation: where two signals meet.
            attending: for both, the attention calls that the other one knows nothing of.
        """
        meeting = self[operation]
        values = [value for _, value in operation.traced()]
        if all(attending) and not any(self._tokens(value) & meeting.parallel for value in values):
            # Two towers, or parallel branches whose skip is still to come.
            return False
        return any(attending) and not self._is_inside(operation)

    def is_beside_learned(self, operation: Operation) -> bool:
        """Whether what attention gave is added to the learned tokens that attended.

        A class token that has met no input yet is a constant, but a row like any other.
        """
        self._read_on()
        constants = [operand for operand in operation.operands if operand.value is None]
        ((_, branch),) = operation.traced()
        if operation.kind is not Kind.ADD or len(constants) != 1:
            return False
        calls = [
            o.attention for o in self._operations[: operation.index] if o.attention is not None
        ]
        return any(
            _joined(query_value(call), constants[0])
            for call in calls
            if self._tokens(branch) >> call.output.index & 1 and not call.among_channels
        )

    def _is_inside(self, operation: Operation) -> bool:
        """Whether a meeting is a part of another one of the same tokens.

        It lies in the branch of a skip, whose tokens it passes on, or in one of parallel branches.
        """
        value = operation.outputs[0]
        histories = {v.attention for _, v in operation.traced()}
        for outer, meeting in self._meetings.items():
            if value is None or outer is operation:
                continue
            values = [v for _, v in outer.traced()]
            if meeting.parallel:
                before = values[0].attention & values[1].attention
                part = any(self._tokens(v) >> value.index & 1 for v in values)
                if part and before in histories | {functools.reduce(operator.and_, histories)}:
                    return True
            if meeting.skip is None:
                continue
            skip, branch = values[meeting.skip], values[1 - meeting.skip]
            within = self._tokens(branch) >> value.index & 1 and value.descends_from(skip.origin)
            if within and skip.attention in histories:
                return True
        return False

    def _meeting(self, operation: Operation) -> Meeting:
        """What is due to two signals.

        - A skip and the attention beside it get the share whole, and so does each of two towers: a
          signal with attention, or with an input, that the other one knows nothing of.
        - A signal that is added to attention stands in for the skip (a projection, where the
          number of features changes) unless the other signal passes the same tokens on.
        - Of signals without any of these each gets half.
        """
        a, b = (value for _, value in operation.traced())
        summed, pairs = operation.kind in (Kind.ADD, Kind.SUB), ((a, b), (b, a))
        meets = operation.kind in MEETINGS
        skips = [meets and other.descends_from(this.origin) for this, other in pairs]
        attends = [bool(this.attention & ~other.attention) for this, other in pairs]
        if not any(skips) and not any(attends):
            return Meeting((0.5, 0.5), None)
        apart = not self._tokens(a) & self._tokens(b)
        whole = [
            skips[i]
            or attends[i]
            or bool(self._sources(this) & ~self._sources(other))
            or (summed and apart and not skips[1 - i])
            for i, (this, other) in enumerate(pairs)
        ]
        twice = [
            skips[i] and attends[1 - i] and bool(self._tokens(other) >> this.origin.index & 1)
            for i, (this, other) in enumerate(pairs)
        ]
        due = (float(whole[0]), float(whole[1]))
        parallel = self._attended(a, b) if all(attends) else 0
        return Meeting(due, twice.index(True) if any(twice) else None, parallel)

    def _attended(self, a: Value, b: Value) -> int:
        """The tokens that attended in all calls that only one of two signals knows of.

        None at all if these calls came one after the other, as in two towers.
        """
        before = a.attention & b.attention
        layers = (a.attention | b.attention) & ~before
        shared = -1
        while layers:
            layer = layers.bit_length() - 1
            layers ^= 1 << layer
            tokens, history = self._queries[layer]
            shared &= tokens if history == before else 0
        return shared

    def _read_on(self) -> None:
        while self._read < len(self._operations):
            self._add(self._operations[self._read])
            self._read += 1

    def _add(self, operation: Operation) -> None:
        traced = [value for _, value in operation.traced()]
        for value in traced:
            if value.operation is None:
                self._inputs |= 1 << value.index
        passing = list(traced)
        call = operation.attention
        if call is not None and not call.among_channels:
            passing = []
            queries = query_value(call)
            history = (self._tokens(queries), queries.attention) if queries is not None else (0, 0)
            self._queries[call.layer] = history
        elif len(traced) == 2:
            meeting = self._meeting(operation)
            self._meetings[operation] = meeting
            if operation.kind in MEETINGS:
                passing = [value for value, due in zip(traced, meeting.due, strict=True) if due]
        tokens = functools.reduce(operator.or_, map(self._tokens, passing), 0)
        for output in operation.outputs:
            if output is not None:
                self._passed_on[output] = tokens

    def _tokens(self, value: Value) -> int:
        """Bit set of the values whose tokens a value still is, but for attention; itself too."""
        return self._passed_on.get(value, 0) | 1 << value.index

    def _sources(self, value: Value) -> int:
        """Bit set of the inputs that a value was made from."""
        return (value.ancestors | 1 << value.index) & self._inputs


def _joined(value: Value | None, constant: Operand) -> bool:
    """Whether a constant was joined with signals to make a value: a class token, say."""
    stack = [value]
    while stack:
        operation = None if (value := stack.pop()) is None else value.operation
        if operation is None or operation.attention is not None:
            continue
        traced = [source for _, source in operation.traced()]
        if operation.kind in MOVES:
            others = [o for o in operation.operands if o.value is None and o.size == constant.size]
            if any(o.tensor.data_ptr() == constant.tensor.data_ptr() for o in others):
                return True
        if len(traced) == 1 or operation.kind in MOVES:
            stack.extend(traced)
    return False
