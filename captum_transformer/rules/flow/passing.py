"""What each operation hands on of a share: one table from kinds of operation to rules."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow import shares
from captum_transformer.rules.flow.maps import Attend
from captum_transformer.rules.flow.presence import Terms
from captum_transformer.rules.flow.rows import NormalisedRows
from captum_transformer.rules.flow.sources import Junction, Sources, receiving
from captum_transformer.rules.propagate import rearranged, unsupported
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.recognise import CUT_PROBABILITIES, applies_cut_probabilities

# What goes to operands that are moved or picked from.
_MOVED: dict[Kind, Callable[[Operation, list[Tensor | None]], list[Tensor | None]]] = {
    **dict.fromkeys(MOVES, rearranged),
    Kind.POOL: shares.pooled,
    Kind.MAXIMUM: shares.pooled,
    Kind.CHOICE: shares.chosen,
}
# What goes to one signal, entry by entry.
_BY_ENTRY: dict[Kind, Callable[[Operation, Operand, Tensor], Tensor]] = {
    **dict.fromkeys(BY_ENTRY, shares.by_entry),
    Kind.EMBEDDING: shares.looked_up,
}
# What goes to one signal of which several entries make one, and only some may hold a source.
_MIXED: dict[Kind, Callable[[Operation, Operand, Tensor, Tensor | None], Tensor]] = {
    Kind.PRODUCT: shares.product,
    **dict.fromkeys(CONVOLUTIONS, shares.receptive_field),
    Kind.SUM: shares.summed,
    Kind.MEAN: shares.summed,
    Kind.DISTANCE: shares.far,
    Kind.SUM_AT_INDICES: shares.added_at_indices,
}
# What each of several signals gets of a share that is its own.
_MEETING: dict[Kind, Callable[[Operation, Operand, Tensor], Tensor]] = {
    **dict.fromkeys(
        (Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV, Kind.CONTRAST, Kind.MAXIMUM), shares.by_entry
    ),
    Kind.PRODUCT: shares.compared,
    Kind.DISTANCE: shares.far,
}

# Where a share goes, the sources that it is of, and the share.
Piece = tuple[Value, int, Tensor]


class Passing:
    """Hands shares of some sources on, one operation at a time.

    Args:
        sources: what each value holds.
        layers: what each attention call that contributes does.
        starting: the sources whose shares start at the values of such a call.
        rows: divides shares by the sums of rows; None not to.
    """

    def __init__(
        self,
        sources: Sources,
        layers: Mapping[int, Attend],
        starting: Callable[[Value], int],
        rows: NormalisedRows | None,
    ) -> None:
        self._sources = sources
        self._layers = layers
        self._starting = starting
        self._rows = rows

    def __call__(
        self, operation: Operation, key: int, found: list[Tensor | None]
    ) -> Iterator[Piece]:
        """What goes on to which value of a share of some sources, by the sources it is of."""
        kind, share = operation.kind, found[0]
        call: AttentionCall | None = operation.attention
        if operation.refusal is not None:
            raise operation.refusal
        if call is None and operation.outputs[0] in self._sources.values:
            raise _unread(operation)
        signals = receiving(operation)
        junction = self._sources.junction(operation)
        if call is None and junction is None and kind in _MOVED:
            parts = _MOVED[kind](operation, found)
            for (_, value), part in zip(signals, parts, strict=True):
                if part is not None:
                    yield value, key & self._sources.held(value), part
        elif share is None:
            raise unsupported(operation, "only a side output is used")
        elif call is not None:
            yield from self._attention(call, key, share)
        elif junction is not None:
            pieces = [(key, share)] if self._rows is None else self._rows.met(operation, key, share)
            for own, piece in pieces:
                yield from self._divided(operation, junction, own, piece)
        elif kind in _BY_ENTRY:
            ((operand, value),) = signals
            if self._rows is not None:
                share = self._rows.beside_learned(operation, value, share)
            yield value, key, _BY_ENTRY[kind](operation, operand, share)
        elif kind in _MIXED:
            ((operand, value),) = signals
            holding = Terms(self._sources, share).holding(value, key)
            pieces = [(key, share)]
            if self._rows is not None and len(holding) > 1:
                pieces = self._rows.parted(operation, [own for own, _ in holding], key, share)
            for some, piece in pieces:
                for alike, present in holding:
                    own = alike & some
                    if own:
                        yield value, own, _MIXED[kind](operation, operand, piece, present)
        else:
            raise unsupported(operation, "whether it keeps tokens apart is not known")

    def _attention(self, call: AttentionCall, key: int, share: Tensor) -> Iterator[Piece]:
        value = call.value.value
        if value is None:
            return
        width = call.values_width()
        if call.among_channels:
            # Its weights, held constant, mix features of one token: a linear map like any other.
            mixed = call.outputs(share).sum(-2, keepdim=True) / call.map_shape()[-1]
            key &= self._sources.held(value)
            keys = mixed.expand(*mixed.shape[:-2], call.map_shape()[-1], mixed.shape[-1])
        else:
            attend = self._layers.get(call.layer)
            if attend is None:
                return
            key = self._starting(value)
            keys = attend(call, call.outputs(share).sum(-1)).unsqueeze(-1) / width
            keys = keys.expand(*keys.shape[:-1], width)
        received = call.to_values(keys)
        dims = [dim for axis in value.features if (dim := axis.dim(value.shape)) is not None]
        for alike, present in Terms(self._sources, share).holding(value, key):
            if present is not None:
                whole = received.sum(dims, keepdim=True)
                yield value, alike, shares.evenly(whole, present, value.shape, dims)
            else:
                yield value, alike, received

    def _divided(
        self, operation: Operation, junction: Junction, key: int, share: Tensor
    ) -> Iterator[Piece]:
        """What each of several signals gets that are added, multiplied or compared."""
        signals = receiving(operation)
        if operation.kind is Kind.SUM_AT_INDICES:
            yield from self._divided_at_indices(operation, junction, key, share)
            return
        place = _MEETING.get(operation.kind)
        if place is None:
            raise unsupported(operation, "which of its signals passes tokens on is not known")
        for (operand, value), whole in zip(signals, junction.whole, strict=True):
            if key & whole:
                yield value, key & whole, place(operation, operand, share)
        values = [value for _, value in signals]
        terms = Terms(self._sources, share)
        for alike, counts in terms.counted(values, key & junction.shared, operation):
            total = sum(counts)
            for (operand, value), count in zip(signals, counts, strict=True):
                if isinstance(count, Tensor) or count:
                    part = shares.quotient(share * count, share.new_ones(()) * total)
                    yield value, alike, place(operation, operand, part)

    def _divided_at_indices(
        self, operation: Operation, junction: Junction, key: int, share: Tensor
    ) -> Iterator[Piece]:
        """The same where only some entries are added to, as with experts' outputs."""
        values = [value for _, value in receiving(operation)]
        nothing = [share.new_zeros(value.shape) for value in values]
        for own, whole in enumerate((*junction.whole, junction.shared)):
            if key & whole:
                held = [
                    None if own in (place, len(values)) else zero
                    for place, zero in enumerate(nothing)
                ]
                parts = shares.summed_at_indices(operation, share, held)
                for value, part in zip(values, parts, strict=True):
                    if part is not None:
                        yield value, key & whole & self._sources.held(value), part


def _unread(operation: Operation) -> UnsupportedOperationError:
    """The error for operations that mix tokens but cannot be read as attention."""
    if applies_cut_probabilities(operation):
        return unsupported(operation, f"it {CUT_PROBABILITIES}")
    if operation.kind is Kind.UNKNOWN:
        return unsupported(operation, "it is not in the table of operations")
    if operation.kind is Kind.MUL:
        return unsupported(
            operation,
            "softmax weights multiply a signal, and the product is not summed over what they are "
            "weights of, so what its branch adds would be lost",
        )
    mixed = "several signals" if len(operation.traced()) > 1 else "a signal"
    return unsupported(
        operation,
        f"it mixes {mixed}, and which of their tokens it mixes is not known (attention must be a "
        "softmax over keys applied to values), so what its branch adds would be lost",
    )
