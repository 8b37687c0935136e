"""Where an explanation looks at numbers: devices are waited for, captured calls check them.

Whatever part of the library decides by the values of a tensor asks here. A call that is captured
has each answer written into its graph, so that the graph is used only where it is the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor


class Reader(Protocol):
    """Who reads numbers while a call is captured."""

    def truth(self, condition: Tensor) -> bool:
        """Whether a condition holds."""

    def numbers(self, tensor: Tensor) -> Any:
        """The numbers of a tensor as an array of NumPy's."""


_READER: ContextVar[Reader | None] = ContextVar("reader", default=None)


def truth(condition: Tensor) -> bool:
    """Whether a condition of one entry holds.

    >>> truth(torch.tensor(2) > 1)
    True
    """
    reader = _READER.get()
    return bool(condition) if reader is None else reader.truth(condition)


def numbers(tensor: Tensor) -> Any:
    """A tensor's numbers as an array of NumPy's.

    >>> numbers(torch.arange(3))
    array([0, 1, 2])
    """
    reader = _READER.get()
    return tensor.cpu().numpy() if reader is None else reader.numbers(tensor)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are known to be equal; of a captured call nothing is."""
    return _READER.get() is None and torch.equal(one, other)


@contextmanager
def read_by(reader: Reader) -> Iterator[None]:
    """Meanwhile all that this thread reads is read by someone."""
    token = _READER.set(reader)
    try:
        yield
    finally:
        _READER.reset(token)
