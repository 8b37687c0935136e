"""Prompts that hold their answer: items that are each a key with a value, then one of the keys."""

from typing import NamedTuple

import torch
from torch import Tensor

KEYS = VALUES = 8
ITEMS = 6
START = 0
# An item is one token, so that the answer stands in a single place.
_ITEM, _ASKED, _ANSWER = 1, 1 + KEYS * VALUES, 1 + KEYS * VALUES + KEYS
SIZE = _ANSWER + VALUES
LENGTH = ITEMS + 2


class Lookups(NamedTuple):
    """Prompts, and where their answers stand.

    Attributes:
        prompts: ``(B, LENGTH)``: the start token, the items, and the key that is looked up.
        place: ``(B,)``, the position of the item with that key.
        answer: ``(B,)``, its value.
        rival: ``(B,)``, the value of another of the prompt's items.
    """

    prompts: Tensor
    place: Tensor
    answer: Tensor
    rival: Tensor


def draw(count: int, seed: int) -> Lookups:
    """Prompts at random, in each of which no key and no value stands twice."""
    generator = torch.Generator().manual_seed(seed)
    keys, values, order = (
        torch.rand(count, size, generator=generator).argsort(1)[:, :ITEMS]
        for size in (KEYS, VALUES, ITEMS)
    )
    asked, other = order[:, :1], order[:, 1:2]
    start = torch.full((count, 1), START)
    items = _ITEM + VALUES * keys + values
    return Lookups(
        torch.cat([start, items, _ASKED + keys.gather(1, asked)], 1),
        1 + asked[:, 0],
        _ANSWER + values.gather(1, asked)[:, 0],
        _ANSWER + values.gather(1, other)[:, 0],
    )
