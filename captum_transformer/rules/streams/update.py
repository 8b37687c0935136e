"""How an attention call updates relevancies between tokens: rules of Chefer et al. (ICCV 2021).

Self-attention adds to the relevance that its tokens have of each stream (eq. 6, 7); cross-attention
passes on the relevance of the tokens that it attends to (eq. 10, 11).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from captum_transformer.trace.numeric import quotient
from captum_transformer.trace.versions import Stream


class Matrices(NamedTuple):
    """How much relevance each token of a version has of each token of some streams.

    The part that passes no attention, each token's own, is stored apart: it is by far the largest.

    Attributes:
        of: the stream of the tokens.
        kept: each token's own part, which has passed no attention, ``(samples, tokens)``.
        passed: for each stream the part that has passed attention, ``(samples, tokens, tokens)``.
    """

    of: Stream
    kept: Tensor
    passed: Mapping[Stream, Tensor]

    def through(self, attention: Tensor) -> dict[Stream, Tensor]:
        """Returns the relevance that tokens get by attending to these tokens."""
        attended = {stream: attention @ matrix for stream, matrix in self.passed.items()}
        own = attention * self.kept.unsqueeze(-2)
        return added(attended, {self.of: own})

    def whole(self) -> Tensor:
        """Returns all relevance that the tokens have of their own stream."""
        return added(self.passed, {self.of: torch.diag_embed(self.kept)})[self.of]


def normalized(passed: Tensor) -> Tensor:
    """Eq. 8, 9: the rows of ``R - I`` divided by their sums, plus ``I``; a zero row stays zero."""
    eye = torch.eye(passed.shape[-1], dtype=passed.dtype, device=passed.device)
    return quotient(passed, passed.sum(-1, keepdim=True)) + eye


def added(left: Mapping[Stream, Tensor], right: Mapping[Stream, Tensor]) -> dict[Stream, Tensor]:
    """Returns the sum of both for each stream; a stream that one of them lacks counts as zero."""
    result = dict(left)
    for stream, matrix in right.items():
        result[stream] = result[stream] + matrix if stream in result else matrix
    return result


@dataclass(frozen=True)
class RelevanceUpdate:
    """The rules of the ICCV 2021 paper.

    Attributes:
        normalize: normalise self-relevance before cross-attention passes it on (eq. 8, 9), unless
            its rows are normalised already: then those of ``R - I`` sum up to zero.
        contextualize: let cross-attention mix the self-relevance of both streams (eq. 10);
            if False, its map is added as it is.
        normalize_rows: divide the rows of ``I + A`` of self-attention by their sums.
    """

    # Maps with gradients need no mask for padding: the gradient is zero there.
    of_probabilities: ClassVar[bool] = False

    normalize: bool = True
    contextualize: bool = True
    normalize_rows: bool = False

    def self_attention(self, attention: Tensor, queries: Matrices, keys: Matrices) -> Matrices:
        """``R + A R`` for each stream (eq. 6, 7)."""
        updated = added(queries.passed, keys.through(attention))
        if not self.normalize_rows:
            return Matrices(queries.of, queries.kept, updated)
        total = 1 + attention.sum(-1, keepdim=True)
        rows = {stream: matrix / total for stream, matrix in updated.items()}
        return Matrices(queries.of, queries.kept / total.squeeze(-1), rows)

    def cross_attention(self, attention: Tensor, queries: Matrices, keys: Matrices) -> Matrices:
        """``R + N(R_qq)^T A N(R_kk)`` for the keys' own stream, else ``R + A R`` (eq. 10, 11)."""
        addition = keys.through(attention)
        addition[keys.of] = attention
        if self.contextualize:
            before, after = self._context(queries), self._context(keys)
            addition[keys.of] = before.transpose(-1, -2) @ attention @ after
        return Matrices(queries.of, queries.kept, added(queries.passed, addition))

    def _context(self, matrices: Matrices) -> Tensor:
        own = matrices.passed.get(matrices.of)
        if not self.normalize or self.normalize_rows or own is None:
            return matrices.whole()
        return normalized(own)


@dataclass(frozen=True)
class RolloutUpdate:
    """Attention rollout within streams; the last cross-attention connects them.

    Attributes:
        normalize_rows: divide the rows of ``I + A`` by their sums.
    """

    # A token that no query of its own stream attends to is padding: cross-attention leaves it out.
    of_probabilities: ClassVar[bool] = True

    normalize_rows: bool = True

    def self_attention(self, attention: Tensor, queries: Matrices, keys: Matrices) -> Matrices:
        """``rownorm(I + A) R`` within the stream; the relevance of other streams stays."""
        own, attended, kept = queries.of, keys.through(attention), queries.kept
        if own not in attended:
            return Matrices(own, kept, {**queries.passed, **attended})
        rolled = added(queries.passed, attended)[own]
        if self.normalize_rows:
            total = 1 + attention.sum(-1, keepdim=True)
            kept, rolled = kept / total.squeeze(-1), rolled / total
        return Matrices(own, kept, {**queries.passed, own: rolled})

    def cross_attention(self, attention: Tensor, queries: Matrices, keys: Matrices) -> Matrices:
        """``R_qq^T A R_kk``, which replaces the result of earlier cross-attention."""
        ends = queries.of, keys.of
        further = {s: attention @ matrix for s, matrix in keys.passed.items() if s not in ends}
        own = queries.whole().transpose(-1, -2) @ attention @ keys.whole()
        return Matrices(queries.of, queries.kept, {**queries.passed, **further, keys.of: own})


# How an attention call updates the matrices of its queries and keys.
UpdateRule = RelevanceUpdate | RolloutUpdate
