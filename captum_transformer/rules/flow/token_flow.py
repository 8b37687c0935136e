"""The token flow: every token's share of the output, carried backward through the attention calls.

A share is spread evenly over a token's features. A token has a share for each source that it holds
(see `sources`); shares that have taken the same path are one tensor. At a residual connection the
shares of earlier sources go to the skip, and those of the attention to its branch: the row of the
papers' ``(I + A_L) ... (I + A_1)``.

Shares that have passed no attention yet are carried apart from the others if they are not to count:
for a token that the score is read from, they are that token itself, by far larger than the rest.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.rules.flow.apart import require_own_samples
from captum_transformer.rules.flow.books import Books
from captum_transformer.rules.flow.carried import Key, Shares, add, counting
from captum_transformer.rules.flow.maps import Attend
from captum_transformer.rules.flow.passing import Passing
from captum_transformer.rules.flow.picked import picks_others
from captum_transformer.rules.flow.rows import NormalisedRows
from captum_transformer.rules.flow.sources import Sources, unread
from captum_transformer.rules.flow.towers import Towers
from captum_transformer.rules.flow.ways import ReachesInputs, leads_nowhere
from captum_transformer.rules.ledger import Asked, Ledger, balanced
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.derivatives import missing_ones_refused
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import quotient
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value

KEEP = frozenset({Kind.MAXIMUM, Kind.CHOICE})


class TokenFlow:
    """Carries shares of the output back to its tokens and inputs.

    Args:
        tape: the traced forward pass.
        layers: for the layer of each attention call that contributes, what the call does; the
            others contribute nothing.
        skip: whether shares that do not pass through a contributing call count.
        direct: whether shares that pass no attention at all count: the ``I`` of the papers'
            product.
        row_sums: returns the sum of each row of a call's maps, ``(..., Q)``, to divide by one plus
            their mean over heads at the residual connection (row-normalised rollout); None for no
            normalisation.
    """

    def __init__(
        self,
        tape: Tape,
        layers: Mapping[int, Attend],
        *,
        skip: bool = True,
        direct: bool = True,
        row_sums: Callable[[AttentionCall], Tensor] | None = None,
    ) -> None:
        self._tape = tape
        self.layers = layers
        self._skip = skip
        self.direct = direct
        self._row_sums = row_sums
        self._sources = tape.derived(Sources)
        self._unread = self._counting = 0
        self._active = sum(
            1 << operation.attention.output.index
            for operation in tape.operations
            if operation.attention is not None and operation.attention.layer in layers
        )
        self._rows = None
        if row_sums is not None:
            self._rows = NormalisedRows(tape, row_sums, self._active, TokenFlow(tape, {}))

    def __call__(
        self,
        seeds: Mapping[Value, Tensor],
        wanted: Sequence[Value],
        ledger: Ledger | None = None,
    ) -> dict[Value, Tensor]:
        """Returns the shares that reach the wanted values from the seeds.

        Args:
            seeds: the shares to start with.
            wanted: the values that shares are carried to.
            ledger: records what reaches them and what takes the rest, if given.
        """
        # A value that is no source gets what arrives of any one source that it holds.
        read = {value: (held := self._sources.held(value)) & -held for value in wanted}
        self._counting = self._countable(read)
        asked = functools.reduce(operator.or_, read.values(), 0)
        # Not an attribute: a reference cycle would keep the tensors that maps are made of.
        noted = None if ledger is None else asked
        passed_on = Passing(self._sources, self.layers, self._starting, self._rows, noted)
        starting = {value: self._starting(value) for value in seeds}
        books = None if ledger is None else Books(ledger, asked)
        if books is not None:
            books.start(seeds, starting)
        arriving: dict[Value, Shares] = {}
        ends, towers = 0 if self.direct else asked, self._tape.derived(Towers)
        for value, share in seeds.items():
            for apart, some in self._parted(value, share, wanted, ends):
                add(arriving, value, Key(starting[value], apart), some)
        arrived: dict[Value, list[Tensor]] = {}
        ended: list[tuple[Value, Shares]] = []
        first = min((_step(value) for value in read), default=0)
        last = max(_step(value) for value in seeds)
        for operation in reversed(self._tape.operations[max(first, 0) : last + 1]):
            if arriving.keys().isdisjoint(operation.outputs):
                continue
            incoming = [arriving.pop(v, {}) if v is not None else {} for v in operation.outputs]
            for place, output in enumerate(operation.outputs):
                if output in read:
                    arrived[output] = counting(incoming[place], read[output])
                if output is not None and (
                    operation.index == first
                    or (output in read and not any(map(output.descends_from, read)))
                ):
                    ended.append((output, incoming[place]))
                    incoming[place] = {}
            if self.layers and self._rows is None and any(incoming):
                towers.refuse(operation)
            call = operation.attention
            attends = call is not None and not call.among_channels
            for key in dict.fromkeys(key for found in incoming for key in found):
                of_key = [found.get(key) for found in incoming]
                pieces = list(passed_on(operation, key.sources, of_key))
                if books is not None:
                    kept, attended = passed_on.kept, passed_on.attended
                    books.passed(operation, key.sources, of_key, pieces, kept, attended)
                apart = key.apart and not attends
                left = []
                for value, part, share in pieces:
                    if apart and not part & (self._active | self._unread):
                        # No attention follows on the way back: it would be left out at the inputs.
                        left.append((value, part, share))
                        continue
                    # A share at a call's output will pass the call, so it is no longer apart.
                    add(arriving, value, Key(part, apart and bool(part & ends)), share)
                if books is not None:
                    books.leave_out(operation, left)
        for value, source in read.items():
            if value not in arrived:
                arrived[value] = counting(arriving.get(value, {}), source)
        if ledger is not None:
            ledger.reached |= {value for value, shares in arrived.items() if shares}
        if books is not None:
            for value, found in (*ended, *arriving.items()):
                for key, share in found.items():
                    books.end(value, read.get(value, 0) * (not key.apart), key.sources, share)
        zero = next(iter(seeds.values())).new_zeros(())
        return {value: sum(shares, zero).expand(value.shape) for value, shares in arrived.items()}

    def conserved(
        self,
        seeds: Mapping[Value, Tensor],
        wanted: Sequence[Value],
        also: Asked | None = None,
        *,
        arriving: bool = False,
    ) -> tuple[dict[Value, Tensor], Ledger]:
        """Does the same as a call, and also returns a ledger that accounts for all shares.

        Args:
            seeds: the shares to start with.
            wanted: the values whose relevance is asked for.
            also: another condition that has to hold.
            arriving: whether shares have to arrive, in place of another condition.

        Raises:
            ConservationError: if a rule passes on a different sum than it got, without a reason.
            UnsupportedOperationError: if no share can arrive, and some has to.
            MixedSamplesError: if a sample gets a share of another sample's score.
        """
        reaches = ReachesInputs(self, seeds, wanted)
        found, ledger = balanced(reaches.run, reaches if arriving else also)
        require_own_samples(lambda weighted: self(weighted, wanted), seeds, found)
        return found, ledger

    def _parted(
        self, value: Value, share: Tensor, wanted: Sequence[Value], ends: int
    ) -> Iterator[tuple[bool, Tensor]]:
        """Divides a share that starts at a value into parts to keep apart and parts not to."""
        held = self._sources.of(value)
        apart = held.sources & ends
        picked = apart & held.by_picked
        if not picked or picks_others(value, apart, self._sources, wanted):
            yield bool(apart) and not picked, share
            return
        # Tokens were picked after learned ones had been joined to others: a token that inputs only
        # reach through attention is the class token of a ViT, and its whole share counts.
        direct = self.comes_from_input(value, wanted, share) != 0
        yield False, share.masked_fill(direct, 0.0)
        yield True, share.masked_fill(~direct, 0.0)

    def _countable(self, read: Mapping[Value, int]) -> int:
        """Returns the sources that lead to wanted values, or to an error."""
        self._unread = wanted = found = 0
        for value, source in read.items():
            wanted |= 1 << value.index
            # Rows are divided by the sum of all sources that a value holds.
            found |= source if self._row_sums is None else self._sources.held(value)
        for output, operation in self._sources.values.items():
            if not output.ancestors & wanted:
                continue
            if operation.attention is None:
                self._unread |= 1 << output.index
            # Rows are normalised where a layer parts from what it is added to, contributing or not.
            elif self._row_sums is not None or self._active >> output.index & 1:
                found |= 1 << output.index
        return found | self._unread

    def _starting(self, value: Value) -> int:
        """Returns the sources whose shares start at a value."""
        held = self._sources.held(value) & self._counting
        passing = held & (self._active | self._unread) if held & self._active else held
        return held if self._skip else passing

    def require_way(self, start: Value, wanted: Sequence[Value]) -> None:
        """Checks that not all shares from a value end at calls that pass nothing on.

        Raises:
            UnsupportedOperationError: if all do, though tokens depend on the wanted values.
        """
        values = self._ends()
        if self._skip and self.direct:
            values.append(start)
        if _any_from(values, wanted) and not any(self.has_way(value, wanted) for value in values):
            for value in values:
                for output, operation in self._sources.values.items():
                    held = self._sources.held(value) >> output.index & 1
                    if held and operation.attention is None:
                        raise unread(operation)
            raise leads_nowhere()

    def _ends(self) -> list[Value]:
        """Returns the values that contributing attention calls attend to."""
        calls = (operation.attention for operation in self._tape.operations)
        ends = [call.value.value for call in calls if call and call.layer in self.layers]
        return [value for value in ends if value is not None]

    def is_made_of(self, wanted: Sequence[Value]) -> bool:
        """Returns whether contributing attention calls attend to what was made of some values."""
        return _any_from(self._ends(), wanted)

    def with_maps(self, attend: Attend) -> "TokenFlow":
        """Returns a flow through the same attention calls by other maps."""
        layers = dict.fromkeys(self.layers, attend)
        return TokenFlow(self._tape, layers, skip=self._skip, direct=self.direct)

    def has_way(self, value: Value, wanted: Sequence[Value]) -> bool:
        """Returns whether a token of the value holds a source that a wanted value holds."""
        held = self._sources.of(value)
        sought = functools.reduce(operator.or_, map(self._sources.held, wanted))
        if not held.sources & sought & held.by_picked or held.sources & sought & ~held.by_picked:
            return bool(held.sources & sought)
        # Only the entries tell which of the joined tokens were picked.
        like = torch.zeros((), dtype=torch.float32, device=value.device)
        found = self.comes_from_input(value, wanted, like).any()
        return truth(found, "which of several joined tokens were picked")

    def comes_from_input(self, value: Value, wanted: Sequence[Value], like: Tensor) -> Tensor:
        """Returns for each entry of a value the part of its share that inputs get by skips alone.

        One for a token that was made from an input, zero for a learned one.
        """
        probe = torch.zeros(value.shape, dtype=like.dtype, device=like.device, requires_grad=True)
        with torch.enable_grad():
            reached = TokenFlow(self._tape, {})({value: probe}, wanted)
            total = torch.stack([tensor.sum() for tensor in reached.values()]).sum()
        if not total.requires_grad:
            return torch.zeros_like(probe)
        with missing_ones_refused():
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
            total = (reached * quotient(relevance, reached.detach())).sum()
        with missing_ones_refused():
            (result,) = torch.autograd.grad(total, probe)
        return result


def _any_from(values: Sequence[Value], wanted: Sequence[Value]) -> bool:
    return any(v is earlier or v.descends_from(earlier) for v in values for earlier in wanted)


def _step(value: Value) -> int:
    return -1 if value.operation is None else value.operation.index
