"""What a process that makes rows runs."""

from __future__ import annotations

import logging

import torch

from benchmarks.model_matrix.catalogue import FAMILIES
from benchmarks.model_matrix.checks import Row, row_of


def prepare() -> None:
    """Tiny models are several times slower on many threads."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def row_at(index: int) -> Row:
    """The row of one family, for a process of its own."""
    return row_of(FAMILIES[index])
