"""A dot product of embeddings as a sum over dimensions, or an estimate from a few directions."""

import torch
from torch import Tensor

# The directions of the two embeddings, and two others to estimate the variance from.
SMALLEST_RANK = 4


def drawn_directions(one: Tensor, other: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws orthonormal directions ``(samples, count, dimensions)`` for two embeddings.

    The first two directions span the embeddings. The others are uniformly distributed among those
    that are orthogonal to both.
    """
    samples, width = one.shape
    drawn = torch.randn(samples, width, count - 2, generator=generator, device=generator.device)
    spanned = torch.stack([one, other], 2)
    # QR uses Householder reflections: columns are orthonormal even if embeddings are parallel.
    columns: Tensor = torch.linalg.qr(torch.cat([spanned, drawn.to(spanned)], 2)).Q
    return columns.transpose(1, 2)


def along(embedding: Tensor, directions: Tensor) -> Tensor:
    """Returns the components of an embedding along directions, ``(samples, directions)``.

    It uses a product and a sum instead of a matrix product, which rules may treat as a layer of
    the model.
    """
    return (embedding.to(directions.dtype).unsqueeze(1) * directions).sum(2)


def paired(one: Tensor, other: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Returns the relevance of pairs of tokens, and its standard error.

    Random directions are a sample, without replacement, from a basis of the space orthogonal to
    both embeddings. So the variance of their mean is the variance of the products, divided by their
    number and multiplied by the fraction of the basis that was left out.
    """

    def summed(left: Tensor, right: Tensor) -> Tensor:
        return left.transpose(1, 2) @ right

    count = one.shape[1]
    if count == width:
        relevance = summed(one, other)
        return relevance, torch.zeros_like(relevance)
    drawn, complement = count - 2, width - 2
    one_drawn, other_drawn = one[:, 2:], other[:, 2:]
    mean = summed(one_drawn, other_drawn) / drawn
    spread = summed(one_drawn**2, other_drawn**2) - drawn * mean**2
    variance = spread.clamp(min=0) / (drawn - 1) / drawn * (1 - drawn / complement)
    relevance = summed(one[:, :2], other[:, :2]) + complement * mean
    return relevance, complement * variance.sqrt()
