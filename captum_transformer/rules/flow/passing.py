"""How each operation passes a share on to its signals: one table from kinds to rules."""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.flow import shares
from captum_transformer.rules.flow.books import Kept, Piece
from captum_transformer.rules.flow.maps import Attend, Attended, by_sample
from captum_transformer.rules.flow.presence import Counts, constant_entries, signal
from captum_transformer.rules.flow.rows import NormalisedRows, together
from captum_transformer.rules.flow.shares import (
    ENTRY_RULES,
    MEETING_RULES,
    MIXED_RULES,
    PICKED,
    Divided,
    unmasked,
)
from captum_transformer.rules.flow.sources import Junction, Sources, unread
from captum_transformer.rules.flow.terms import ADDITIONS, joins_features, receiving
from captum_transformer.rules.ledger import total
from captum_transformer.rules.propagate import unsupported
from captum_transformer.rules.rearranged import rearranged
from captum_transformer.rules.relevance.totals import constants, remaining
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.features import feature_dims
from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.numeric import quotient
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value


class Passing:
    """Passes the shares of some sources on, one operation at a time.

    Args:
        sources: what each value holds.
        layers: for the layer of each attention call that contributes, what the call does.
        starting: returns the sources whose shares start at the values of such a call.
        rows: divides shares by the sums of rows; None for no normalisation.
        wanted: the sources that are asked for; None if what goes to no signal isn't recorded.

    Attributes:
        kept: what the operation has passed on to no signal.
        attended: the result of the operation, if it is an attention call that contributes.
    """

    def __init__(
        self,
        sources: Sources,
        layers: Mapping[int, Attend],
        starting: Callable[[Value], int],
        rows: NormalisedRows | None,
        wanted: int | None,
    ) -> None:
        self._sources = sources
        self._layers = layers
        self._starting = starting
        self._rows = rows
        self._wanted = wanted
        self.kept: list[Kept] = []
        self.attended: Attended | None = None

    def __call__(
        self, operation: Operation, key: int, found: list[Tensor | None]
    ) -> Iterator[Piece]:
        """Yields the values that get parts of a share, each with the part and its sources."""
        kind, share = operation.kind, found[0]
        call: AttentionCall | None = operation.attention
        self.kept, self.attended = [], None
        if operation.refusal is not None:
            raise operation.refusal
        if call is None and operation.outputs[0] in self._sources.values:
            raise unread(operation)
        signals = receiving(operation)
        junction = self._sources.junction(operation)
        if call is None and junction is None and (kind in MOVES or kind in PICKED):
            yield from self._moved(operation, key, found)
        elif share is None:
            raise unsupported(operation, "only a side output is used")
        elif call is not None:
            yield from self._attention(call, key, share)
        elif junction is not None:
            pieces = [(key, share)]
            if self._rows is not None:
                pieces = self._normalised(share, self._rows.met(operation, key, share))
            for own, piece in pieces:
                yield from self._met(operation, junction, own, piece)
        elif kind in ENTRY_RULES:
            ((operand, value),) = signals
            if self._rows is not None:
                normalised = self._rows.beside_learned(operation, value, share)
                ((_, share),) = self._normalised(share, [(key, normalised)])
            divided = ENTRY_RULES[kind](operation, operand, share, None)
            yield from self._divided(operation, key, divided, share)
        elif kind in MIXED_RULES:
            yield from self._mixed(operation, key, share)
        else:
            raise unsupported(operation, "whether it keeps tokens apart is not known")

    def _mixed(self, operation: Operation, key: int, share: Tensor) -> Iterator[Piece]:
        """Yields the parts of a signal whose entries are reduced, by the sources that they hold."""
        ((operand, value),), rule = receiving(operation), MIXED_RULES[operation.kind]
        counts, pieces, whole = Counts(self._sources, share), [(key, share)], 0
        holding = counts.holding(value, key, operation)
        if self._rows is not None and len(holding) > 1:
            groups = counts.groups(value, key)
            whole = self._rows.whole(groups, key)
            parts = groups if whole else [own for own, _ in holding]
            pieces = self._normalised(share, self._rows.parted(operation, parts, key, share))
        for some, piece in pieces:
            for own, present in holding:
                if apart := own & some & ~whole:
                    divided = rule(operation, operand, piece, present)
                    yield from self._divided(operation, apart, divided, piece)
            if rows := some & whole:
                # Each entry gets its part of all that it holds, so that rows have their sums.
                lacking = [0 if held is None else 1 - held for own, held in holding if own & rows]
                anything = 1 - math.prod(lacking)
                present = anything if isinstance(anything, Tensor) else None
                yield from self._divided(
                    operation, rows, rule(operation, operand, piece, present), piece
                )

    def _divided(
        self, operation: Operation, key: int, divided: Divided, share: Tensor
    ) -> Iterator[Piece]:
        """Yields each signal's part; records the share of entries that are made of no signal."""
        if divided.among is not None:
            filled = operation.kind is Kind.MUL or not constants(operation)
            reason = Reason.FILLED if filled else Reason.CONSTANT
            self._keep(reason, key, operation.outputs[0], share, divided.among == 0)
        for (_, value), part in zip(receiving(operation), divided.parts, strict=True):
            yield value, key & self._sources.held(value), part

    def _keep(
        self,
        reason: Reason | None,
        key: int,
        value: Value | None,
        share: Tensor,
        where: Tensor | int = 1,
    ) -> None:
        """Records the part of a share at a value that is passed on to no signal."""
        if self._wanted is not None and key:
            self.kept.append(Kept(reason, key, total(value, share * where)))

    def _moved(self, operation: Operation, key: int, found: list[Tensor | None]) -> Iterator[Piece]:
        """Moves shares back to where entries came from; records those of constants and others."""
        if operation.kind in MOVES:
            parts = rearranged(operation, self._without_constants(operation, key, found))
        else:
            parts = shares.selected(operation, found)
            if self._wanted is not None and constants(operation):
                lost = remaining(operation, found, parts)
                self.kept.append(Kept(Reason.CONSTANT, key, lost))
        for (_, value), part in zip(receiving(operation), parts, strict=True):
            if part is None:
                continue
            held = self._sources.held(value)
            if key & held:
                yield value, key & held, part
            # Tokens of another input have a share of their own, and never held this source.
            reason = None if held & (self._wanted or 0) else Reason.JOINED
            self._keep(reason, key & ~held, value, part)

    def _without_constants(
        self, operation: Operation, key: int, found: list[Tensor | None]
    ) -> list[Tensor | None]:
        """Returns shares without those of entries that constants have replaced."""
        masks = operation.kind is Kind.MOVE
        if self._wanted is None and not masks:
            return found
        shares = list(found)
        entries = constant_entries(operation, next(s for s in found if s is not None))
        reason = Reason.JOINED if constants(operation) else Reason.FILLED
        for place, constant in enumerate(entries):
            value, share = operation.outputs[place], found[place]
            if value is None or share is None or constant is None:
                continue
            if masks and joins_features(operation, value):
                shares[place], among = unmasked(share, 1 - constant, value)
                constant = among == 0
            self._keep(reason, key, value, share, constant)
        return shares

    def _normalised(
        self, share: Tensor, pieces: list[tuple[int, Tensor]]
    ) -> list[tuple[int, Tensor]]:
        """Returns the pieces of a share; records how much the normalisation of rows took away."""
        for part, piece in pieces:
            if piece is not share:
                self._keep(None, part, None, share - piece)
        return pieces

    def _attention(self, call: AttentionCall, key: int, share: Tensor) -> Iterator[Piece]:
        value = call.value.value
        if call.among_channels and value is not None:
            # Its weights, held constant, mix features of one token: a linear map like any other.
            mixed = call.outputs(share).sum(-2, keepdim=True) / call.map_shape()[-1]
            received = call.to_values(mixed.expand(*mixed.shape[:-2], call.map_shape()[-1], -1))
            key &= self._sources.held(value)
        else:
            attend = self._layers.get(call.layer)
            if attend is None:
                self._keep(None, key, None, share)
                return
            attended = attend(call, call.outputs(share).sum(-1))
            self.attended = attended
            self.kept.append(Kept(None, key, attended.read))
            key = 0 if value is None else self._starting(value)
            # The shares that start anew; if none does, one share that reaches no input.
            self.kept.append(Kept(None, key or 1, attended.made, starts=True))
            if not key or value is None:
                # Queries descend from inputs, and what they attend to does not.
                reason = Reason.CONSTANT if value is None else Reason.ELSEWHERE
                some = self._wanted or 0
                self.kept.append(Kept(reason, some & -some, by_sample(call, attended.keys)))
                return
            width = call.values_width()
            keys = attended.keys.unsqueeze(-1) / width
            received = call.to_values(keys.expand(*keys.shape[:-1], width))
        dims = feature_dims(value)
        holding = Counts(self._sources, share).holding(value, key, call.operation)
        if self._rows is not None:
            self._rows.require_together(call.operation, holding, dims)
        for alike, present in holding:
            if present is not None and dims:
                yield value, alike, shares.among_present(received, present, dims)
            else:
                yield value, alike, received

    def _met(
        self, operation: Operation, junction: Junction, key: int, share: Tensor
    ) -> Iterator[Piece]:
        """Yields the part of each of several signals that are added, multiplied or compared."""
        signals = receiving(operation)
        if operation.kind is Kind.SUM_AT_INDICES:
            yield from self._met_at_indices(operation, junction, key, share)
            return
        rule = MEETING_RULES.get(operation.kind)
        if rule is None:
            raise unsupported(operation, "it is unknown which of its signals passes tokens on")
        counts = Counts(self._sources, share)
        for tied in [key] if self._rows is None else self._rows.tied(key):
            shared, parts = tied & junction.shared, junction.whole
            counted = counts.counted(operation, shared)
            if self._rows is not None and shared:
                # What attention added to tokens goes where they go, each row with its sum.
                parts = (0,) * len(parts)
                numbers = together([of for _, of in counted], share)
                counted = iter([(shared | tied & junction.held, numbers)])
            for place, ((operand, value), whole) in enumerate(zip(signals, parts, strict=True)):
                if not (own := tied & whole):
                    continue
                others = [signals[at] for at in range(len(signals)) if at != place]
                also = functools.reduce(operator.or_, (self._sources.held(v) for _, v in others))
                also &= own * (operation.kind in ADDITIONS)
                left = signal(operand, share) if also else None
                if left is None:
                    for some, present in counts.holding(value, own, operation):
                        yield value, some, rule(operation, operand, share, present).parts[0]
                    continue
                # Where constants have masked a signal, the other signals get its share.
                left = (left != 0).to(share.dtype)
                self._keep(Reason.FILLED, own & ~also, operation.outputs[0], share, 1 - left)
                yield value, own, rule(operation, operand, share * left, None).parts[0]
                for other, instead in others:
                    if some := also & self._sources.held(instead):
                        part = rule(operation, other, share * (1 - left), None).parts[0]
                        yield instead, some, part
                        also &= ~some
            for alike, numbers in counted:
                among = share.new_ones(()) * sum(numbers)
                self._keep(Reason.JOINED, alike, operation.outputs[0], share, among == 0)
                for (operand, value), own, number in zip(
                    signals, junction.whole, numbers, strict=True
                ):
                    if isinstance(number, Tensor) or number:
                        part = quotient(share * number, among)
                        self._keep(None, alike & own, None, share - part)
                        own = alike & (own | junction.shared)
                        for some, present in counts.holding(value, own, operation):
                            yield value, some, rule(operation, operand, part, present).parts[0]

    def _met_at_indices(
        self, operation: Operation, junction: Junction, key: int, share: Tensor
    ) -> Iterator[Piece]:
        """Does the same as `_met` if only some entries are added to, as with experts' outputs."""
        values = [value for _, value in receiving(operation)]
        nothing = [share.new_zeros(value.shape) for value in values]
        for own, whole in enumerate((*junction.whole, junction.shared)):
            if key & whole:
                held = [
                    None if own in (place, len(values)) else zero
                    for place, zero in enumerate(nothing)
                ]
                divided = shares.summed_at_indices(operation, share, held)
                yield from self._divided(operation, key & whole, divided, share)
