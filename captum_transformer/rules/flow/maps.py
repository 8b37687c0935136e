"""Maps from token to token, a block of queries at a time, and what attention does with them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.heads import by_head

# Computes the rows of a call's map ``(..., rows, K)`` that belong to a slice of its queries.
MapBlock = Callable[[AttentionCall, slice], Tensor]


class Attended(NamedTuple):
    """The shares that an attention call computes from the shares of its queries.

    Attributes:
        keys: the shares of the keys' values, ``(..., K)``.
        read: the sum of the queries' shares.
        made: the sum that the keys' shares should have, computed from the sums of the map's rows.
    """

    keys: Tensor
    read: Tensor
    made: Tensor


class Attend(Protocol):
    """A function that passes the shares of an attention call's queries on to its keys."""

    def __call__(self, call: AttentionCall, shares: Tensor) -> Attended:
        """Returns the shares of the keys' values ``(..., K)``, given the queries' ``(..., Q)``."""


def attend_with(maps: MapBlock) -> Attend:
    """Returns a function that multiplies shares by a map ``(..., rows, K)``, block by block."""

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
    """Computes maps only once if their rows are summed before shares are multiplied by them.

    The map of one call is kept in between, if it is one block.

    Args:
        maps: computes the rows of a map.
    """

    def __init__(self, maps: MapBlock) -> None:
        self._maps = maps
        self._kept: tuple[AttentionCall, slice, Tensor] | None = None

    def __call__(self, call: AttentionCall, rows: slice) -> Tensor:
        """Returns the rows of a call's map."""
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] is call and kept[1] == rows:
            return kept[2]
        block = self._maps(call, rows)
        if block.shape[-2] == call.map_shape()[-2]:
            self._kept = call, rows, block
        return block


def by_heads(maps: MapBlock, call: AttentionCall) -> Tensor:
    """Returns the whole map of each head of a call: ``(samples, heads, Q, K)``."""
    return torch.cat([by_head(call, maps(call, rows)) for rows in call.blocks()], -2)


def averaged_over_heads(maps: MapBlock, call: AttentionCall) -> Tensor:
    """Returns the whole map of a call, averaged over its heads: ``(samples, Q, K)``."""
    return torch.cat([by_head(call, maps(call, rows)).mean(1) for rows in call.blocks()], -2)


def by_sample(call: AttentionCall, keys: Tensor) -> Tensor:
    """Returns the sum of the keys' shares, for each sample if the samples are known."""
    samples = call.output.samples
    known = samples is not None and samples.outer == 1
    return keys.reshape(samples.size, -1).sum(1) if samples is not None and known else keys.sum()
