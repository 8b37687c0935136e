"""The token flow: every token's share of the output, carried backward through the attention calls.

A share is spread evenly over a token's features. What flows is a share for each source that a token
holds (see `sources`); those that have taken the same way are one tensor. At a residual connection
all that was there before goes to the skip and the attention to its branch: the row of the papers'
``(I + A_L) ... (I + A_1)``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow import shares
from captum_transformer.rules.flow.maps import Attend
from captum_transformer.rules.flow.presence import Terms
from captum_transformer.rules.flow.rows import Rows, bits
from captum_transformer.rules.flow.sources import Meeting, Sources, is_source, receiving
from captum_transformer.rules.propagate import rearranged, unsupported
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.recognise import CUT_PROBABILITIES, applies_cut_probabilities
from captum_transformer.trace.tape import Tape

KEEP = frozenset({Kind.POOL, Kind.MAXIMUM, Kind.CHOICE})

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

# Shares by the sources that they are of. No source is in two of one token's keys twice.
Shares = dict[int, Tensor]


class TokenFlow:
    """Carries shares of the output back to its tokens and inputs.

    Args:
        tape: the traced forward pass.
        layers: what each attention call that contributes does; the others contribute nothing.
        skip: whether what does not pass through a contributing call counts.
        row_sums: the sum of each row of the calls' maps, ``(..., Q)``, to divide by one plus their
            mean over heads at the residual connection (row-normalised rollout); None not to.
    """

    def __init__(
        self,
        tape: Tape,
        layers: Mapping[int, Attend],
        *,
        skip: bool = True,
        row_sums: Callable[[AttentionCall], Tensor] | None = None,
    ) -> None:
        self._tape = tape
        self._layers = layers
        self._skip = skip
        self._row_sums = row_sums
        self._sources = tape.derived(Sources)
        self._rows = None if row_sums is None else tape.derived(Rows)
        self._unread = self._counting = 0
        self._active = sum(
            1 << operation.attention.output.index
            for operation in tape.operations
            if operation.attention is not None and operation.attention.layer in layers
        )

    def __call__(
        self, seeds: Mapping[Value, Tensor], wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        """What reaches the wanted values of what starts at the seeds."""
        # A value that is no source has what arrives of any one source that it holds.
        read = {value: (held := self._sources.held(value)) & -held for value in wanted}
        self._counting = self._countable(read)
        arriving: dict[Value, Shares] = {}
        for value, share in seeds.items():
            _add(arriving, value, self._starting(value), share)
        arrived: dict[Value, Tensor] = {}
        first = min((_step(value) for value in read), default=0)
        last = max(_step(value) for value in seeds)
        for operation in reversed(self._tape.operations[max(first, 0) : last + 1]):
            incoming = [arriving.pop(v, {}) if v is not None else {} for v in operation.outputs]
            keys = dict.fromkeys(key for found in incoming for key in found)
            if not keys:
                continue
            for output, found in zip(operation.outputs, incoming, strict=True):
                if output in read:
                    arrived[output] = _total(found, read[output], output, seeds)
            if operation.index == first:
                break
            for key in keys:
                for value, part, share in self._passed_on(
                    operation, key, [found.get(key) for found in incoming]
                ):
                    _add(arriving, value, part, share)
        for value, source in read.items():
            if value not in arrived:
                arrived[value] = _total(arriving.get(value, {}), source, value, seeds)
        return arrived

    def _countable(self, read: Mapping[Value, int]) -> int:
        """The sources that lead to wanted values, or to an error."""
        self._unread = wanted = found = 0
        for value, source in read.items():
            wanted |= 1 << value.index
            found |= source
        for operation in self._tape.operations:
            output = operation.outputs[0]
            if output is None or not output.ancestors & wanted or not is_source(operation):
                continue
            if operation.attention is None:
                self._unread |= 1 << output.index
            # Rows are normalised where a layer parts from what it is added to, contributing or not.
            elif self._row_sums or self._active >> output.index & 1:
                found |= 1 << output.index
        return found | self._unread

    def _starting(self, value: Value) -> int:
        """The sources whose shares start at a value."""
        held = self._sources.held(value) & self._counting
        passing = held & (self._active | self._unread) if held & self._active else held
        return held if self._skip else passing

    def require_way(self, start: Value, wanted: Sequence[Value]) -> None:
        """Makes sure that what starts at a value does not all end at calls that hand nothing on.

        Raises:
            UnsupportedOperationError: if it does, though the wanted values have a part in it.
        """
        ends = [
            operation.attention.value.value
            for operation in self._tape.operations
            if operation.attention is not None and operation.attention.layer in self._layers
        ]
        values = [value for value in (*ends, *([start] if self._skip else [])) if value is not None]
        made = any(v is earlier or v.descends_from(earlier) for v in values for earlier in wanted)
        sources = self._sources.held
        if made and not any(sources(v) & sources(earlier) for v in values for earlier in wanted):
            raise UnsupportedOperationError(
                "The tokens of the chosen attention layers were made of the inputs by earlier "
                "attention without a skip beside it (as where LeViT merges tokens), so their "
                "relevance leads back to no input. Choose an earlier `layer` or `start_layer`, or "
                "a method that multiplies all layers, such as AttentionRollout."
            )

    def _passed_on(
        self, operation: Operation, key: int, found: list[Tensor | None]
    ) -> Iterator[tuple[Value, int, Tensor]]:
        """What goes on to which value of a share of some sources, by the sources it is of."""
        kind, share = operation.kind, found[0]
        call: AttentionCall | None = operation.attention
        if operation.refusal is not None:
            raise operation.refusal
        if call is None and is_source(operation):
            raise _unread(operation)
        signals = receiving(operation)
        meeting = self._sources.meeting(operation)
        if call is None and meeting is None and kind in _MOVED:
            parts = _MOVED[kind](operation, found)
            for (_, value), part in zip(signals, parts, strict=True):
                if part is not None:
                    yield value, key & self._sources.held(value), part
        elif share is None:
            raise unsupported(operation, "only a side output is used")
        elif call is not None:
            yield from self._attention(call, key, share)
        elif meeting is not None:
            for own, piece in self._by_rows(operation, None, key, share):
                yield from self._divided(operation, meeting, own, piece)
        elif kind in _BY_ENTRY:
            ((operand, value),) = signals
            share = self._beside_learned(operation, value, share)
            yield value, key, _BY_ENTRY[kind](operation, operand, share)
        elif kind in _MIXED:
            ((operand, value),) = signals
            holding = Terms(self._sources, share).holding(value, key)
            for some, piece in self._by_rows(operation, [own for own, _ in holding], key, share):
                for alike, present in holding:
                    own = alike & some
                    if own:
                        yield value, own, _MIXED[kind](operation, operand, piece, present)
        else:
            raise unsupported(operation, "whether it keeps tokens apart is not known")

    def _attention(
        self, call: AttentionCall, key: int, share: Tensor
    ) -> Iterator[tuple[Value, int, Tensor]]:
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
        self, operation: Operation, meeting: Meeting, key: int, share: Tensor
    ) -> Iterator[tuple[Value, int, Tensor]]:
        """What each of several signals gets that are added, multiplied or compared."""
        signals = receiving(operation)
        if operation.kind is Kind.SUM_AT_INDICES:
            yield from self._divided_at_indices(operation, meeting, key, share)
            return
        place = _MEETING.get(operation.kind)
        if place is None:
            raise unsupported(operation, "which of its signals passes tokens on is not known")
        for (operand, value), whole in zip(signals, meeting.whole, strict=True):
            if key & whole:
                yield value, key & whole, place(operation, operand, share)
        values = [value for _, value in signals]
        terms = Terms(self._sources, share)
        for alike, counts in terms.counted(values, key & meeting.shared, operation):
            total = sum(counts)
            for (operand, value), count in zip(signals, counts, strict=True):
                if isinstance(count, Tensor) or count:
                    part = shares.quotient(share * count, share.new_ones(()) * total)
                    yield value, alike, place(operation, operand, part)

    def _divided_at_indices(
        self, operation: Operation, meeting: Meeting, key: int, share: Tensor
    ) -> Iterator[tuple[Value, int, Tensor]]:
        """The same where only some entries are added to, as with experts' outputs."""
        values = [value for _, value in receiving(operation)]
        nothing = [share.new_zeros(value.shape) for value in values]
        for own, whole in enumerate((*meeting.whole, meeting.shared)):
            if key & whole:
                held = [
                    None if own in (place, len(values)) else zero
                    for place, zero in enumerate(nothing)
                ]
                parts = shares.summed_at_indices(operation, share, held)
                for value, part in zip(values, parts, strict=True):
                    if part is not None:
                        yield value, key & whole & self._sources.held(value), part

    def _by_rows(
        self, operation: Operation, parts: list[int] | None, key: int, share: Tensor
    ) -> list[tuple[int, Tensor]]:
        """Divides shares by the sums of rows of the layers that part from their base here."""
        pieces = [(key, share)]
        if self._rows is None:
            return pieces
        for calls, base in self._rows.at(operation) if parts is None else self._rows.between(parts):
            # Where a skip goes around several layers, they have parted from it there.
            if (calls | base) & ~key or not calls & self._active:
                continue
            total = 1 + self._row_sums_at(operation, calls & self._active, share)
            pieces = [
                (part, piece / total if of_layer else piece)
                for whole, piece in pieces
                for part, of_layer in (
                    (whole & (calls | base), True),
                    (whole & ~(calls | base), False),
                )
                if part
            ]
        return pieces

    def _beside_learned(self, operation: Operation, value: Value, share: Tensor) -> Tensor:
        if self._rows is None:
            return share
        calls = self._rows.beside_learned(operation, value) & self._active
        return share / (1 + self._row_sums_at(operation, calls, share)) if calls else share

    def _row_sums_at(self, operation: Operation, calls: int, like: Tensor) -> Tensor:
        """The calls' row sums, carried forward to where their branch meets the skip.

        Forward is the adjoint of backward: the derivative of what a share there makes of the row
        sums at the calls.
        """
        output = operation.outputs[0]
        if self._row_sums is None or self._rows is None or output is None:
            raise RuntimeError("row sums are only asked for when rows are normalised")
        made = {call.output: call for call in map(self._rows.calls.__getitem__, bits(calls))}
        probe = torch.zeros(output.shape, dtype=like.dtype, device=like.device, requires_grad=True)
        with torch.enable_grad():
            reached = TokenFlow(self._tape, {})({output: probe}, list(made))
            total = torch.zeros((), dtype=like.dtype, device=like.device)
            for value, call in made.items():
                sums = self._row_sums(call).detach()
                total = total + (call.outputs(reached[value]).sum(-1) * sums).sum()
        (sums,) = torch.autograd.grad(total, probe)
        return sums

    def comes_from_input(self, value: Value, wanted: Sequence[Value], like: Tensor) -> Tensor:
        """For each entry of a value, what part of a share there the inputs get by skips alone.

        One for a token that was made from an input, zero for a learned one.
        """
        probe = torch.zeros(value.shape, dtype=like.dtype, device=like.device, requires_grad=True)
        with torch.enable_grad():
            reached = TokenFlow(self._tape, {})({value: probe}, wanted)
            total = torch.stack([tensor.sum() for tensor in reached.values()]).sum()
        if not total.requires_grad:
            return torch.zeros_like(probe)
        (part,) = torch.autograd.grad(total, probe)
        return part

    def gathered(self, tokens: Value, source: Value, relevance: Tensor) -> Tensor:
        """Sums relevance of an input over what each token was made from: the flow's adjoint.

        An input value that several tokens were made from is split evenly among them. The result
        has the shape of the tokens' value; its sum is that of the relevance.
        """
        probe = torch.ones(
            tokens.shape, dtype=relevance.dtype, device=relevance.device, requires_grad=True
        )
        with torch.enable_grad():
            reached = self({tokens: probe}, [source])[source]
            parts = torch.where(
                reached == 0, torch.zeros_like(relevance), relevance / reached.detach()
            )
            total = (reached * parts.detach()).sum()
        (result,) = torch.autograd.grad(total, probe)
        return result


def _add(arriving: dict[Value, Shares], value: Value, key: int, share: Tensor) -> None:
    """Adds a share to what arrives at a value of the same sources."""
    if key:
        found = arriving.setdefault(value, {})
        found[key] = found[key] + share if key in found else share


def _total(found: Shares, source: int, value: Value, seeds: Mapping[Value, Tensor]) -> Tensor:
    """What has arrived of one source."""
    total = next(iter(seeds.values())).new_zeros(())
    for key, share in found.items():
        if key & source:
            total = total + share
    return total.expand(value.shape)


def _step(value: Value) -> int:
    return -1 if value.operation is None else value.operation.index


def _unread(operation: Operation) -> UnsupportedOperationError:
    """The error for what ties tokens and is no attention that can be read."""
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
        f"it mixes {mixed}, and which of their tokens it ties is not known (attention must be a "
        "softmax over keys applied to values), so what its branch adds would be lost",
    )
