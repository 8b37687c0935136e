"""Relevancies between the tokens of several streams, multiplied over a forward pass.

Each version of a stream has its own matrices, so the rules (see `update`) read the values before
an update wherever the model does.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.maps import MapBlock, averaged_over_heads
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.streams.update import Matrices, UpdateRule, added
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.heads import by_head
from captum_transformer.trace.history import History
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.tokens import spread_over_tokens
from captum_transformer.trace.value import Value
from captum_transformer.trace.versions import Stream, Version

# How far shares may deviate by rounding, relative to their size.
_ROUNDING = 1e-3


class Relevancies:
    """The matrices of each version of each stream of a forward pass.

    Args:
        forward: the traced forward pass.
        history: the part of it that the score depends on.
        maps: the map of each attention call, ``(..., rows, K)``.
        rule: how the calls update the matrices.
        calls: the calls that contribute; the others leave the matrices as they are.
        dtype: the precision of the matrices.
        direct: whether shares that pass no attention count: the ``I`` of the papers' product.

    Raises:
        UnsupportedOperationError: if tokens are merged, dropped or rearranged between attention
            calls, so that their maps can't be multiplied.
    """

    what = "tokens keep their places between attention calls"

    def __init__(
        self,
        forward: TracedForward,
        history: History,
        maps: MapBlock,
        rule: UpdateRule,
        calls: Collection[AttentionCall],
        dtype: torch.dtype,
        *,
        direct: bool,
    ) -> None:
        self._forward = forward
        self._streams = history.streams
        self._maps = maps
        self._rule = rule
        self._calls = calls
        self._dtype = dtype
        self._direct = direct
        self._matrices: dict[Version, Matrices] = {}
        self._starts: dict[Stream, Matrices] = {}
        self._tokens: dict[Stream, Value | None] = {}
        self._newest: dict[Stream, Version] = {}
        self._padding: dict[Stream, Tensor] = {}
        self._asked: set[tuple[Value, AttentionCall]] = set()
        self._displacement = torch.zeros((), dtype=dtype, device=forward.inputs[0].device)
        for call, version in self._streams.calls.items():
            self._matrices[version] = self._after(call, version)
            self._newest[version.stream] = version

    def holds(self) -> Tensor:
        """Whether tokens stay where they are between two attention calls."""
        return ~(self._displacement > _ROUNDING)

    def require(self) -> None:
        """Raises if tokens change places, so that the matrices are wrong; waits for the device.

        Raises:
            UnsupportedOperationError: if they do.
        """
        if not truth(self.holds(), f"whether {self.what}"):
            raise _not_aligned("tokens change places between two attention calls")

    def are_in_place(self) -> None:
        """Records that tokens stay where they are, so that other targets don't check it again."""
        self._streams.in_place |= self._asked

    def maps(self) -> dict[tuple[str, str], Tensor]:
        """Returns the matrices of the newest version of each stream, by the streams' names."""
        self.require()
        names = self._streams.names()
        return {
            (names[stream], names[source]): matrix.detach()
            for stream, version in self._newest.items()
            for source, matrix in self._with_own(self._matrices[version]).items()
        }

    def at_start(self, shares: Mapping[Version, Tensor]) -> dict[Value, Tensor]:
        """Returns what the initial tokens get of shares ``(samples, tokens)`` of some versions."""
        rows: dict[Stream, Tensor] = {}
        for version, share in shares.items():
            for source, matrix in self._counting(self.of(version)).items():
                row = (share.unsqueeze(-2) @ matrix).squeeze(-2)
                rows[source] = rows[source] + row if source in rows else row
        return {
            value: spread_over_tokens(row, value)
            for source, row in rows.items()
            if (value := self._tokens[source]) is not None
        }

    def _counting(self, matrices: Matrices) -> dict[Stream, Tensor]:
        """Returns the part of a version's matrices that counts."""
        if not self._direct:
            return dict(matrices.passed)
        return added(matrices.passed, {matrices.of: torch.diag_embed(matrices.kept)})

    def _with_own(self, matrices: Matrices) -> dict[Stream, Tensor]:
        """Returns the same, with zeros for the version's own tokens if it has none of them."""
        nothing = torch.diag_embed(torch.zeros_like(matrices.kept))
        return {matrices.of: nothing, **self._counting(matrices)}

    def of(self, version: Version) -> Matrices:
        """Returns the matrices of a version."""
        if version.is_start:
            return self._starts[version.stream]
        if version not in self._matrices:
            left, right = version.before
            common = left
            while not right.descends_from(common):
                common = common.before[0]
            one, other, twice = map(self.of, (left, right, common))
            surplus = {stream: -matrix for stream, matrix in twice.passed.items()}
            passed = added(added(one.passed, other.passed), surplus)
            kept = one.kept + other.kept - twice.kept
            self._matrices[version] = Matrices(version.stream, kept, passed)
        return self._matrices[version]

    def _after(self, call: AttentionCall, version: Version) -> Matrices:
        if len(version.before) != 1 or len(version.keys) != 1:
            raise _not_aligned(
                f"the queries of attention call {call.layer} ({call.module}) are tokens of "
                f"{len(version.before)} streams and its keys of {len(version.keys)}"
            )
        (before,), (key,) = version.before, version.keys
        *_, rows, columns = call.map_shape()
        keys = self._entering(key, call.value.value, call, columns)
        queries = self._entering(before, query_value(call), call, rows)
        if call not in self._calls:
            return queries
        attention = self._attention(call)
        if version.is_cross_attention:
            if self._rule.of_probabilities and version.stream in self._padding:
                attention = attention.masked_fill(self._padding[version.stream], 0.0)
            return self._rule.cross_attention(attention, queries, keys)
        if key.stream is version.stream:
            self._padding[version.stream] = (attention.amax(-2) == 0).unsqueeze(-1)
        return self._rule.self_attention(attention, queries, keys)

    def _attention(self, call: AttentionCall) -> Tensor:
        """Returns the map of a call, averaged over its heads: ``(samples, Q, K)``."""
        attention = averaged_over_heads(self._maps, call)
        if len(attention) != len(self._forward.inputs[0]):
            raise _not_aligned(f"attention call {call.layer} ({call.module}) runs over windows")
        return attention

    def _entering(
        self, version: Version, value: Value | None, call: AttentionCall, tokens: int
    ) -> Matrices:
        """Returns the matrices of the tokens that enter a call; refuses if these may be others."""
        samples = len(self._forward.inputs[0])
        if version.is_start and version.stream not in self._starts:
            kept = self._displacement.new_ones(samples, tokens)
            self._starts[version.stream] = Matrices(version.stream, kept, {})
            self._tokens[version.stream] = value
        matrices = self.of(version)
        known = matrices.kept.shape[-1]
        if known != tokens:
            raise _not_aligned(
                f"attention call {call.layer} ({call.module}) runs over {tokens} tokens of "
                f"{version.stream.name!r}, of which {known} were known before"
            )
        if not version.is_start and value is not None:
            self._check_places(value, last_call(version), tokens)
        return matrices

    def _check_places(self, value: Value, last: AttentionCall, tokens: int) -> None:
        """Records whether shares of a value's tokens reach the same tokens of an earlier call."""
        if (value, last) in self._streams.in_place | self._asked:
            return
        self._asked.add((value, last))
        sent = torch.arange(1, tokens + 1, device=self._displacement.device, dtype=self._dtype)
        sent = sent.expand(len(self._forward.inputs[0]), tokens)
        flow = TokenFlow(self._forward.tape, {})
        arrived = flow({value: spread_over_tokens(sent, value)}, [last.output])[last.output]
        arrived = shares_of_queries(last, arrived)
        # Features that are beside the tokens', of earlier states or learned ones, get their part.
        part = arrived.sum(-1, keepdim=True) / sent.sum(-1, keepdim=True)
        moved = (arrived / part - sent).abs() / sent
        moved = torch.where((part > 0) & (part < 1 + _ROUNDING), moved, torch.inf)
        self._displacement = torch.maximum(self._displacement, moved.max())


def last_call(version: Version) -> AttentionCall:
    """Returns the newest attention call of a version, or of one of the branches meeting in it."""
    while version.call is None:
        (version, *_) = version.before
    return version.call


def shares_of_queries(call: AttentionCall, shares: Tensor) -> Tensor:
    """Returns the shares at a call's output, one for each query: ``(samples, queries)``."""
    return by_head(call, call.outputs(shares)).sum((1, 3))


def _not_aligned(why: str) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"The attention maps can't be multiplied to relevance from token to token: {why}. "
        "Use `attribute` or `attribute_tokens` with `propagation='flow'`, which follows the tokens "
        "wherever they go."
    )
