"""The order in which places are changed."""

import torch
from torch import Tensor

from captum_transformer.metrics.places import Order, ranks_of

# Which places go first, and what is good then.
DIRECTIONS: tuple[tuple[Order, str], ...] = (("positive", "low"), ("negative", "high"))


def untied(relevance: Tensor, seed: int = 0) -> Tensor:
    """The ranks of each sample's places, ties broken at random.

    Many a map is zero in most places. Left to the reading order, these would go from the upper left
    to the lower right, and pictures have their objects in the middle.

    Args:
        relevance: ``(samples, ...)``.
        seed: Of the order of ties.

    Returns:
        Of the same shape; 0 is the least relevant.
    """
    flat = relevance.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(flat.shape, generator=generator).argsort(1)
    order = chance.gather(1, flat.gather(1, chance).argsort(dim=1, stable=True))
    return ranks_of(order).double().view_as(relevance)
