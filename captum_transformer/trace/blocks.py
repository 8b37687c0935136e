"""Blocks of query rows, so that no map of all pairs of tokens need be in memory."""

import math
from collections.abc import Iterator

import torch

# Entries of the probabilities that are computed at a time: what a CPU's cache holds, and elsewhere
# enough to keep the device busy (256 MiB in float32).
BLOCK_ENTRIES = {"cpu": 1 << 20}
LARGE_BLOCK_ENTRIES = 1 << 26
# Products of fewer rows are slow: with 16,384 keys, 8 rows take twice as long as a quarter of 32.
LEAST_ROWS = 32


def row_blocks(shape: tuple[int, ...], device: torch.device) -> Iterator[slice]:
    """Blocks of query rows of a ``(..., Q, K)`` map that fit the memory set aside for them."""
    *lead, queries, keys = shape
    entries = BLOCK_ENTRIES.get(device.type, LARGE_BLOCK_ENTRIES)
    size = max(LEAST_ROWS, entries // max(1, math.prod(lead) * keys))
    for start in range(0, queries, size):
        yield slice(start, min(start + size, queries))
