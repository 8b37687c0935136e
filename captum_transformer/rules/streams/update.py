"""What an attention call makes of relevancies between tokens: rules of Chefer et al. (ICCV 2021).

Self-attention adds to what its tokens have from each stream (eq. 6, 7); cross-attention hands
on what the tokens that it attends to have (eq. 10, 11).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from captum_transformer.trace.versions import Stream


class Matrices(NamedTuple):
    """How much each token of a version has of each token of some streams.

    What passes no attention, each token's own, is carried apart: it is by far the largest part.

    Attributes:
        of: the stream that the tokens are of.
        kept: what each token has of itself through no attention, ``(samples, tokens)``.
        passed: by stream what has passed attention, ``(samples, tokens, tokens)``.
    """

    of: Stream
    kept: Tensor
    passed: Mapping[Stream, Tensor]

    def through(self, attention: Tensor) -> dict[Stream, Tensor]:
        """What tokens get that attend to these."""
        attended = {stream: attention @ matrix for stream, matrix in self.passed.items()}
        own = attention * self.kept.unsqueeze(-2)
        return added(attended, {self.of: own})

    def whole(self, stream: Stream) -> Tensor:
        """All that the tokens have of one stream."""
        return added(self.passed, {self.of: torch.diag_embed(self.kept)})[stream]


class UpdateRule(Protocol):
    """What an attention call makes of the matrices of its queries and keys.

    Attributes:
        of_probabilities: whether the maps are attention probabilities. A token that no query of its
            own stream attends to at all is padding then, and has no say in cross-attention.
            (Maps with gradients tell by themselves: the gradient is zero at padding.)
    """

    of_probabilities: ClassVar[bool]

    def self_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream
    ) -> Matrices:
        """Queries and keys are tokens of the stream ``of``."""

    def cross_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream, to: Stream
    ) -> Matrices:
        """Queries are tokens of the stream ``of``, keys of the stream ``to``."""


def normalized(passed: Tensor) -> Tensor:
    """Eq. 8, 9: the rows of ``R - I`` divided by their sums, plus ``I``; a zero row stays zero."""
    total = passed.sum(-1, keepdim=True)
    eye = torch.eye(passed.shape[-1], dtype=passed.dtype, device=passed.device)
    return torch.where(total == 0, torch.zeros_like(passed), passed / total) + eye


def added(left: Mapping[Stream, Tensor], right: Mapping[Stream, Tensor]) -> dict[Stream, Tensor]:
    """The sum of both for each stream; a stream that one of them lacks counts as zero."""
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

    of_probabilities: ClassVar[bool] = False

    normalize: bool = True
    contextualize: bool = True
    normalize_rows: bool = False

    def self_attention(
        self,
        attention: Tensor,
        queries: Matrices,
        keys: Matrices,
        of: Stream,
    ) -> Matrices:
        """``R + A R`` for each stream (eq. 6, 7)."""
        updated = added(queries.passed, keys.through(attention))
        if not self.normalize_rows:
            return Matrices(of, queries.kept, updated)
        total = 1 + attention.sum(-1, keepdim=True)
        rows = {stream: matrix / total for stream, matrix in updated.items()}
        return Matrices(of, queries.kept / total.squeeze(-1), rows)

    def cross_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream, to: Stream
    ) -> Matrices:
        """``R + N(R_qq)^T A N(R_kk)`` for the keys' own stream, else ``R + A R`` (eq. 10, 11)."""
        addition = keys.through(attention)
        addition[to] = attention
        if self.contextualize:
            before, after = self._context(queries, of), self._context(keys, to)
            addition[to] = before.transpose(-1, -2) @ attention @ after
        return Matrices(of, queries.kept, added(queries.passed, addition))

    def _context(self, matrices: Matrices, of: Stream) -> Tensor:
        if not self.normalize or self.normalize_rows or of not in matrices.passed:
            return matrices.whole(of)
        return normalized(matrices.passed[of])


@dataclass(frozen=True)
class RolloutUpdate:
    """Attention rollout within streams; the last cross-attention connects them.

    Attributes:
        normalize_rows: divide the rows of ``I + A`` by their sums.
    """

    of_probabilities: ClassVar[bool] = True

    normalize_rows: bool = True

    def self_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream
    ) -> Matrices:
        """``rownorm(I + A) R`` within the stream; what is had of other streams stays."""
        attended = keys.through(attention)
        if of not in attended:
            return Matrices(of, queries.kept, {**queries.passed, **attended})
        kept = queries.kept
        rolled = attended[of] + queries.passed[of] if of in queries.passed else attended[of]
        if self.normalize_rows:
            total = 1 + attention.sum(-1, keepdim=True)
            kept, rolled = kept / total.squeeze(-1), rolled / total
        return Matrices(of, kept, {**queries.passed, of: rolled})

    def cross_attention(
        self, attention: Tensor, queries: Matrices, keys: Matrices, of: Stream, to: Stream
    ) -> Matrices:
        """``R_qq^T A R_kk`` in the place of what earlier cross-attention has left."""
        further = {s: attention @ matrix for s, matrix in keys.passed.items() if s not in (of, to)}
        own = queries.whole(of).transpose(-1, -2) @ attention @ keys.whole(to)
        return Matrices(of, queries.kept, {**queries.passed, **further, to: own})
