"""The places of equal values, which share a rank."""

import torch
from torch import Tensor


def tied_places(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where the values that equal each value begin and end, in sorted rows.

    Args:
        ordered: Rows of sorted values ``(samples, places)``.

    Returns:
        The first and the last place of the values that equal each one, both of shape
        ``(samples, places)``.

    Example:
        >>> first, last = tied_places(torch.tensor([[9, 5, 5, 1]]))
        >>> first.tolist(), last.tolist()
        ([[0, 1, 1, 3]], [[0, 2, 2, 3]])
    """
    length = ordered.shape[1]
    places = torch.arange(length, device=ordered.device).expand(ordered.shape)
    edge = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    changes = ordered[:, 1:] != ordered[:, :-1]
    starts, ends = torch.cat([edge, changes], 1), torch.cat([changes, edge], 1)
    first = torch.where(starts, places, 0).cummax(1).values
    last = torch.where(ends, places, length).flip(1).cummin(1).values.flip(1)
    return first, last
