"""Pairs of sentences that name the same animal, in whatever words, and say nothing else."""

from typing import NamedTuple

import torch
from torch import Tensor

ANIMALS, NAMES, FILLERS, LENGTH = 4, 3, 17, 7
_NAME = 1
_FILLER = _NAME + ANIMALS * NAMES
SIZE = _FILLER + FILLERS


class Sentences(NamedTuple):
    """Sentences, and where they say what they are about.

    Attributes:
        ids: ``(B, LENGTH)``.
        place: ``(B,)``, the position of the animal's name.
    """

    ids: Tensor
    place: Tensor


def about(animals: Tensor, generator: torch.Generator | None = None) -> Sentences:
    """Random words, one of which is one of the names of an animal."""
    count = animals.shape
    ids = torch.randint(_FILLER, SIZE, (*count, LENGTH), generator=generator)
    place = torch.randint(LENGTH, count, generator=generator)
    names = _NAME + NAMES * animals + torch.randint(NAMES, count, generator=generator)
    return Sentences(ids.scatter(1, place[:, None], names[:, None]), place)


def draw(count: int, seed: int) -> tuple[Sentences, Sentences]:
    """Pairs that are about the same animal each."""
    generator = torch.Generator().manual_seed(seed)
    animals = torch.randint(ANIMALS, (count,), generator=generator)
    return about(animals, generator), about(animals, generator)
