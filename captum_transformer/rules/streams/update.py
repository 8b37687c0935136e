"""What an attention call makes of relevancies between tokens: rules of Chefer et al. (ICCV 2021).

Self-attention adds to what its tokens have from each stream (eq. 6, 7); cross-attention hands
on what the tokens that it attends to have (eq. 10, 11).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from captum_transformer.trace.versions import Stream

# How much each token of a version has of each token of some streams: (samples, tokens, tokens).
Matrices = Mapping[Stream, Tensor]


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


def normalized(relevance: Tensor) -> Tensor:
    """Eq. 8, 9: the rows of ``R - I`` divided by their sums, plus ``I``; a zero row stays zero."""
    eye = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    return _rows_to_one(relevance - eye) + eye


def _rows_to_one(matrix: Tensor) -> Tensor:
    total = matrix.sum(-1, keepdim=True)
    return torch.where(total == 0, torch.zeros_like(matrix), matrix / total)


def added(left: Matrices, right: Matrices) -> dict[Stream, Tensor]:
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
        of: Stream,  # noqa: ARG002 - the same for each stream
    ) -> Matrices:
        """``R + A R`` for each stream (eq. 6, 7)."""
        updated = added(queries, {s: attention @ matrix for s, matrix in keys.items()})
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
        return added(queries, {**addition, to: own})


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
