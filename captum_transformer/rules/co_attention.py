"""Relevancies between the tokens of several streams: the matrix rules of Chefer et al. (ICCV 2021).

Self-attention adds to what its tokens have from each stream (eq. 6, 7); cross-attention hands
on what the tokens that it attends to have (eq. 10, 11). Each version of a stream has its own
matrices, so the rules read the values before an update wherever the model does.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow import MapBlock, TokenFlow
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.streams import query_value
from captum_transformer.trace.tape import Value
from captum_transformer.trace.tokens import spread_over_tokens
from captum_transformer.trace.versions import Stream, Version

# How far shares may stray by rounding, of themselves.
_ROUNDING = 1e-3

# How much each token of a version has of each token of some streams: (samples, tokens, tokens).
Matrices = Mapping[Stream, Tensor]


class UpdateRule(Protocol):
    """What an attention call makes of the matrices of its queries and keys."""

    def self_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream
    ) -> Matrices:
        """Queries and keys are tokens of the stream ``of``."""

    def cross_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream, to: Stream
    ) -> Matrices:
        """Queries are tokens of the stream ``of``, keys of the stream ``to``."""


def normalized(relevance: Tensor) -> Tensor:
    """Eq. 8, 9: the rows of ``R - I`` divided by their sums, plus ``I``; a zero row stays zero."""
    eye = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    return _rows_to_one(relevance - eye) + eye


def _rows_to_one(matrix: Tensor) -> Tensor:
    total = matrix.sum(-1, keepdim=True)
    return torch.where(total == 0, torch.zeros_like(matrix), matrix / total)


def _added(left: Matrices, right: Matrices) -> dict[Stream, Tensor]:
    result = dict(left)
    for stream, matrix in right.items():
        result[stream] = result[stream] + matrix if stream in result else matrix
    return result


@dataclass(frozen=True)
class RelevanceUpdate:
    """The rules of the ICCV 2021 paper.

    Attributes:
        normalize: normalise self-relevance before cross-attention hands it on (eq. 8, 9), unless
            its rows are normalised already: then those of ``R - I`` sum up to zero.
        contextualize: let cross-attention mix the self-relevance of both streams (eq. 10);
            without it its map is added as it is.
        normalize_rows: divide the rows of ``I + A`` of self-attention by their sums.
    """

    normalize: bool = True
    contextualize: bool = True
    normalize_rows: bool = False

    def self_attention(
        self,
        attention: Tensor,
        queries: Matrices,
        keys: Matrices,
        of: Stream,  # noqa: ARG002 - the same for each stream
    ) -> Matrices:
        """``R + A R`` for each stream (eq. 6, 7)."""
        updated = _added(queries, {s: attention @ matrix for s, matrix in keys.items()})
        if not self.normalize_rows:
            return updated
        total = 1 + attention.sum(-1, keepdim=True)
        return {stream: matrix / total for stream, matrix in updated.items()}

    def cross_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream, to: Stream
    ) -> Matrices:
        """``R + N(R_qq)^T A N(R_kk)`` for the keys' own stream, else ``R + A R`` (eq. 10, 11)."""
        addition = {s: attention @ matrix for s, matrix in keys.items() if s is not to}
        own = attention
        if self.contextualize:
            before, after = queries[of], keys[to]
            if self.normalize and not self.normalize_rows:
                before, after = normalized(before), normalized(after)
            own = before.transpose(-1, -2) @ attention @ after
        return _added(queries, {**addition, to: own})


@dataclass(frozen=True)
class RolloutUpdate:
    """Attention rollout within streams; the last cross-attention ties them.

    Attributes:
        normalize_rows: divide the rows of ``I + A`` by their sums.
    """

    normalize_rows: bool = True

    def self_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream
    ) -> Matrices:
        """``rownorm(I + A) R`` within the stream; what is had of other streams stays."""
        if of not in keys:
            return {**queries, **{s: attention @ matrix for s, matrix in keys.items()}}
        rolled = queries[of] + attention @ keys[of]
        if self.normalize_rows:
            rolled = rolled / (1 + attention.sum(-1, keepdim=True))
        return {**queries, of: rolled}

    def cross_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream, to: Stream
    ) -> Matrices:
        """``R_qq^T A R_kk`` in the place of what earlier cross-attention has left."""
        further = {s: attention @ matrix for s, matrix in keys.items() if s not in (of, to)}
        own = queries[of].transpose(-1, -2) @ attention @ keys[to]
        return {**queries, **further, to: own}


class Relevancies:
    """The matrices of each version of each stream of a forward pass.

    Args:
        forward: the traced forward pass.
        maps: the map of each attention call, ``(..., rows, K)``.
        rule: what the calls make of the matrices.
        calls: the calls that contribute; the others leave the matrices as they are.
        dtype: the precision of the matrices.

    Raises:
        UnsupportedOperationError: if tokens are merged, dropped or rearranged between attention
            calls, so that their maps can't be multiplied.
    """

    def __init__(
        self,
        forward: TracedForward,
        maps: MapBlock,
        rule: UpdateRule,
        calls: Collection[AttentionCall],
        dtype: torch.dtype,
    ) -> None:
        self._forward = forward
        self._maps = maps
        self._rule = rule
        self._calls = calls
        self._dtype = dtype
        self._matrices: dict[Version, Matrices] = {}
        self._starts: dict[Stream, Tensor] = {}
        self._tokens: dict[Stream, Value | None] = {}
        self._newest: dict[Stream, Version] = {}
        self._displacement = torch.zeros((), dtype=dtype, device=forward.inputs[0].device)
        for call, version in forward.streams.calls.items():
            self._matrices[version] = self._after(call, version)
            self._newest[version.stream] = version
        if bool(self._displacement > _ROUNDING):
            forward.streams.in_place.clear()
            raise _not_aligned("tokens change places between two attention calls")

    def maps(self) -> dict[tuple[str, str], Tensor]:
        """The matrices of the newest version of each stream, by the names of the streams."""
        names = self._forward.streams.names()
        return {
            (names[stream], names[source]): matrix.detach()
            for stream, version in self._newest.items()
            for source, matrix in self._matrices[version].items()
        }

    def at_start(self, shares: Mapping[Version, Tensor]) -> dict[Value, Tensor]:
        """What tokens as they entered get of shares ``(samples, tokens)`` of some versions."""
        rows: dict[Stream, Tensor] = {}
        for version, share in shares.items():
            for source, matrix in self.of(version).items():
                row = (share.unsqueeze(-2) @ matrix).squeeze(-2)
                rows[source] = rows[source] + row if source in rows else row
        return {
            value: spread_over_tokens(row, value)
            for source, row in rows.items()
            if (value := self._tokens[source]) is not None
        }

    def of(self, version: Version) -> Matrices:
        """The matrices of a version."""
        if version.is_start:
            return {version.stream: self._starts[version.stream]}
        if version not in self._matrices:
            left, right = version.before
            common = left
            while not right.descends_from(common):
                common = common.before[0]
            surplus = {stream: -matrix for stream, matrix in self.of(common).items()}
            self._matrices[version] = _added(_added(self.of(left), self.of(right)), surplus)
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
            to = key.stream
            return self._rule.cross_attention(attention, queries, keys, version.stream, to)
        return self._rule.self_attention(attention, queries, keys, version.stream)

    def _attention(self, call: AttentionCall) -> Tensor:
        """The map of a call, averaged over its heads: ``(samples, Q, K)``."""
        blocks = [call.by_head(self._maps(call, rows)).mean(1) for rows in call.blocks()]
        attention = torch.cat(blocks, -2)
        if len(attention) != len(self._forward.inputs[0]):
            raise _not_aligned(f"attention call {call.layer} ({call.module}) runs over windows")
        return attention

    def _entering(
        self, version: Version, value: Value | None, call: AttentionCall, tokens: int
    ) -> Matrices:
        """The matrices of what enters a call, if it is clear that the tokens are the same."""
        samples = len(self._forward.inputs[0])
        if version.is_start and version.stream not in self._starts:
            eye = torch.eye(tokens, dtype=self._dtype, device=self._displacement.device)
            self._starts[version.stream] = eye.expand(samples, tokens, tokens)
            self._tokens[version.stream] = value
        matrices = self.of(version)
        known = next(iter(matrices.values())).shape[-2]
        if known != tokens:
            raise _not_aligned(
                f"attention call {call.layer} ({call.module}) runs over {tokens} tokens of "
                f"{version.stream.name!r}, of which {known} were known before"
            )
        if not version.is_start and value is not None:
            self._check_places(value, last_call(version), tokens)
        return matrices

    def _check_places(self, value: Value, last: AttentionCall, tokens: int) -> None:
        """Notes whether shares at a value's tokens reach the same tokens of an earlier call."""
        known = self._forward.streams.in_place
        if (value, last) in known:
            return
        known.add((value, last))
        sent = torch.arange(1, tokens + 1, device=self._displacement.device, dtype=self._dtype)
        sent = sent.expand(len(self._forward.inputs[0]), tokens)
        flow = TokenFlow(self._forward.tape, {})
        arrived = flow({value: spread_over_tokens(sent, value)}, [last.output])[last.output]
        moved = (shares_of_queries(last, arrived) - sent).abs() / sent
        self._displacement = torch.maximum(self._displacement, moved.max())


def last_call(version: Version) -> AttentionCall:
    """The newest attention call of a version, or of one of the branches that meet in it."""
    while version.call is None:
        (version, *_) = version.before
    return version.call


def shares_of_queries(call: AttentionCall, shares: Tensor) -> Tensor:
    """Shares at the output of a call, one for each query: ``(samples, queries)``."""
    return call.by_head(call.outputs(shares)).sum((1, 3))


def _not_aligned(why: str) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"The attention maps can't be multiplied to relevance from token to token: {why}. "
        "Use `attribute` or `attribute_tokens` with `propagation='flow'`, which follows the tokens "
        "wherever they go."
    )
