"""Maps from token to token, a block of queries at a time, and what attention does with them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.heads import by_head

# The rows of a call's map ``(..., rows, K)`` that belong to a slice of its queries.
MapBlock = Callable[[AttentionCall, slice], Tensor]


class Attended(NamedTuple):
    """What an attention call makes of the shares of its queries.

    Attributes:
        keys: the shares of the keys' values, ``(..., K)``.
        read: the sum of the queries' shares that it has read.
        made: the sum of what it has made of them, as the sums of the map's rows tell.
    """

    keys: Tensor
    read: Tensor
    made: Tensor


class Attend(Protocol):
    """What an attention call does with the shares of its queries."""

    def __call__(self, call: AttentionCall, shares: Tensor) -> Attended:
        """From the queries' shares ``(..., Q)`` to those of the keys' values ``(..., K)``."""


def attend_with(maps: MapBlock) -> Attend:
    """Attention that hands shares over by a map ``(..., rows, K)``, computed block by block."""

    def attend(call: AttentionCall, shares: Tensor) -> Attended:
        blocks = call.blocks()
        keys, read, made = _through(maps, call, shares, next(blocks))
        for rows in blocks:
            further = _through(maps, call, shares, rows)
            keys, read, made = keys + further.keys, read + further.read, made + further.made
        return Attended(keys, read, made)

    return attend


def _through(maps: MapBlock, call: AttentionCall, shares: Tensor, rows: slice) -> Attended:
    block, share = maps(call, rows).to(shares.dtype), shares[..., rows]
    keys = (share.unsqueeze(-2) @ block).squeeze(-2)
    return Attended(keys, share.sum(), (share * block.sum(-1)).sum())


class ReadTwice:
    """Maps whose rows are added up before shares go through them: they are computed once.

    That of one call is kept in between, if it is one block.

    Args:
        maps: the maps.
    """

    def __init__(self, maps: MapBlock) -> None:
        self._maps = maps
        self._kept: tuple[AttentionCall, slice, Tensor] | None = None

    def __call__(self, call: AttentionCall, rows: slice) -> Tensor:
        """The rows of a call's map."""
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] is call and kept[1] == rows:
            return kept[2]
        block = self._maps(call, rows)
        if block.shape[-2] == call.map_shape()[-2]:
            self._kept = call, rows, block
        return block


def by_heads(maps: MapBlock, call: AttentionCall) -> Tensor:
    """The whole map of each head of a call: ``(samples, heads, Q, K)``."""
    return torch.cat([by_head(call, maps(call, rows)) for rows in call.blocks()], -2)


def averaged_over_heads(maps: MapBlock, call: AttentionCall) -> Tensor:
    """The whole map of a call, averaged over its heads: ``(samples, Q, K)``."""
    return torch.cat([by_head(call, maps(call, rows)).mean(1) for rows in call.blocks()], -2)


def by_sample(call: AttentionCall, keys: Tensor) -> Tensor:
    """The sum of shares of keys, for each sample if they are known."""
    samples = call.output.samples
    known = samples is not None and samples.outer == 1
    return keys.reshape(samples.size, -1).sum(1) if samples is not None and known else keys.sum()
