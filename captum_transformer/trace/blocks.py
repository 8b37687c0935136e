"""Blocks of query rows, so that the full attention map is never held in memory."""

import math
from collections.abc import Iterator

import torch

# The number of probabilities that are computed at a time: what fits a CPU's cache, and on other
# devices enough to keep the device busy (256 MiB in float32).
BLOCK_ENTRIES = {"cpu": 1 << 20}
LARGE_BLOCK_ENTRIES = 1 << 26
# Smaller blocks are slow: with 16,384 keys, 8 rows take half as long as 32, not a quarter.
LEAST_ROWS = 32


def row_blocks(shape: tuple[int, ...], device: torch.device) -> Iterator[slice]:
    """Yields blocks of query rows of a ``(..., Q, K)`` map that fit the reserved memory."""
    *lead, queries, keys = shape
    entries = BLOCK_ENTRIES.get(device.type, LARGE_BLOCK_ENTRIES)
    size = max(LEAST_ROWS, entries // max(1, math.prod(lead) * keys))
    for start in range(0, queries, size):
        yield slice(start, min(start + size, queries))
