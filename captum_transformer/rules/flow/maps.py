"""Maps from token to token, a block of queries at a time, and what attention does with them."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from captum_transformer.trace.attention import AttentionCall

# The rows of a call's map ``(..., rows, K)`` that belong to a slice of its queries.
MapBlock = Callable[[AttentionCall, slice], Tensor]


class Attend(Protocol):
    """What an attention call does with the shares of its queries."""

    def __call__(self, call: AttentionCall, shares: Tensor) -> Tensor:
        """From the queries' shares ``(..., Q)`` to those of the keys' values ``(..., K)``."""


def attend_with(maps: MapBlock) -> Attend:
    """Attention that hands shares over by a map ``(..., rows, K)``, computed block by block."""

    def attend(call: AttentionCall, shares: Tensor) -> Tensor:
        blocks = call.blocks()
        total = _through(maps, call, shares, next(blocks))
        for rows in blocks:
            total = total + _through(maps, call, shares, rows)
        return total

    return attend


def _through(maps: MapBlock, call: AttentionCall, shares: Tensor, rows: slice) -> Tensor:
    return (shares[..., rows].unsqueeze(-2) @ maps(call, rows).to(shares.dtype)).squeeze(-2)


def by_heads(maps: MapBlock, call: AttentionCall) -> Tensor:
    """The whole map of each head of a call: ``(samples, heads, Q, K)``."""
    return torch.cat([call.by_head(maps(call, rows)) for rows in call.blocks()], -2)


def averaged_over_heads(maps: MapBlock, call: AttentionCall) -> Tensor:
    """The whole map of a call, averaged over its heads: ``(samples, Q, K)``."""
    return torch.cat([call.by_head(maps(call, rows)).mean(1) for rows in call.blocks()], -2)
