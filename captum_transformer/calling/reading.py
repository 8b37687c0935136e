"""Where an explanation reads numbers: this waits for the device, and captured calls check them.

Every part of the library that decides by the values of a tensor reads them here. A captured call
has each answer written into its graph, so that the graph is only used if the answer is the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor


class Reader(Protocol):
    """Reads numbers while a call is captured."""

    def truth(self, condition: Tensor, what: str) -> bool:
        """Returns whether a condition holds."""

    def numbers(self, tensor: Tensor, what: str) -> Any:
        """Returns the numbers of a tensor as a NumPy array."""

    def refuse(self, why: str) -> None:
        """Raises an error: what follows depends on numbers in a way that can't be captured."""


_READER: ContextVar[Reader | None] = ContextVar("reader", default=None)


def truth(condition: Tensor, what: str) -> bool:
    """Returns whether a condition of one entry holds.

    Args:
        condition: the condition.
        what: what is checked, for messages: "whether ...".

    >>> truth(torch.tensor(2) > 1, "whether two is more than one")
    True
    """
    reader = _READER.get()
    return bool(condition) if reader is None else reader.truth(condition, what)


def numbers(tensor: Tensor, what: str) -> Any:
    """Returns a tensor's numbers as a NumPy array.

    Args:
        tensor: the tensor.
        what: what is checked, for messages: "which ...".

    >>> numbers(torch.arange(3), "which numbers there are")
    array([0, 1, 2])
    """
    reader = _READER.get()
    return tensor.cpu().numpy() if reader is None else reader.numbers(tensor, what)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors are known to be equal, which is False in a captured call."""
    return _READER.get() is None and torch.equal(one, other)


def uncaptured(why: str) -> None:
    """Raises an error in a call that is being captured; nothing happens otherwise.

    Args:
        why: what follows, and that it depends on numbers.
    """
    reader = _READER.get()
    if reader is not None:
        reader.refuse(why)


@contextmanager
def read_by(reader: Reader) -> Iterator[None]:
    """Lets a reader answer all reads of this thread in its context."""
    token = _READER.set(reader)
    try:
        yield
    finally:
        _READER.reset(token)
