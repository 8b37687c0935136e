"""Shares that arrive at a value, by what they are shares of."""

from typing import NamedTuple

from torch import Tensor

from captum_transformer.trace.value import Value


class Key(NamedTuple):
    """Identifies shares that are carried together.

    Attributes:
        sources: the sources of the shares, as a bit set.
        apart: whether the shares have passed no attention and don't count at the inputs.
    """

    sources: int
    apart: bool


# For each token, a source is in at most one key that is apart and in one that is not.
Shares = dict[Key, Tensor]


def add(arriving: dict[Value, Shares], value: Value, key: Key, share: Tensor) -> None:
    """Adds a share to the share of the same sources that arrives at a value."""
    if key.sources:
        found = arriving.setdefault(value, {})
        found[key] = found[key] + share if key in found else share


def counting(found: Shares, source: int) -> list[Tensor]:
    """Returns the shares of one source that have arrived and count."""
    return [share for key, share in found.items() if key.sources & source and not key.apart]
