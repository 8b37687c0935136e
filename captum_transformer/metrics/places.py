"""Orders places of an input (pixels, tokens) by relevance, and replaces the first ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_transformer.errors import InvalidInputError

Order: TypeAlias = Literal["positive", "negative"]
"""Which places are first: ``"positive"``, the most relevant; ``"negative"``, the least."""

Baselines: TypeAlias = float | Sequence[float] | Tensor
"""The replacement for a place: a number, one per channel, or a tensor."""


def place_shape(inputs: Tensor) -> tuple[int, ...]:
    """Returns the shape of one sample's places: ``(N,)`` tokens or ``(H, W)`` pixels.

    Args:
        inputs: Token ids ``(B, N)``, embeddings ``(B, N, D)`` or images ``(B, C, H, W)``; in
            inputs of any other shape, each entry is a place.
    """
    return {3: tuple(inputs.shape[1:2]), 4: tuple(inputs.shape[2:])}.get(
        inputs.ndim, tuple(inputs.shape[1:])
    )


def place_relevance(attributions: Any, inputs: Tensor) -> Tensor:
    """Returns the relevance of each place: ``(B, places)``, in reading order.

    Args:
        attributions: The result of a method for the inputs: for each token or for each feature of
            each token; for each pixel ``(B, H, W)``, ``(B, 1, H, W)`` or for each of its channels
            ``(B, C, H, W)``. Features and channels are summed. A tuple or a mapping with one
            tensor counts as that tensor.
        inputs: Token ids ``(B, N)``, embeddings ``(B, N, D)`` or images ``(B, C, H, W)``.

    Raises:
        InvalidInputError: If the shapes don't belong together, or some relevance is not finite.
    """
    relevance = _only(attributions)
    samples, places = len(inputs), place_shape(inputs)
    shape = tuple(relevance.shape)
    image = inputs.ndim == 4
    per_place = (samples, *places)
    with_features = [(samples, 1, *places), tuple(inputs.shape)] if image else [tuple(inputs.shape)]
    if shape != per_place and shape in with_features:
        relevance = relevance.sum(1 if image else -1)
    elif shape != per_place:
        wanted = " or ".join(map(str, dict.fromkeys((per_place, *with_features))))
        raise InvalidInputError(
            f"Relevance of shape {shape} doesn't belong to inputs of shape {tuple(inputs.shape)}: "
            f"expected {wanted}. Convert relevance per patch to pixels first: use `attribute` "
            "instead of `attribute_tokens`, or torch.nn.functional.interpolate."
        )
    if relevance.is_floating_point() and not bool(relevance.isfinite().all()):
        raise InvalidInputError("Relevance must be finite: NaN and infinity have no order.")
    return relevance.detach().reshape(samples, -1).to(inputs.device)


def _only(attributions: Any) -> Tensor:
    if isinstance(attributions, Mapping):
        attributions = tuple(attributions.values())
    if isinstance(attributions, (tuple, list)) and len(attributions) == 1:
        attributions = attributions[0]
    if not isinstance(attributions, Tensor):
        found = (
            f"a {type(attributions).__name__} of {len(attributions)}"
            if isinstance(attributions, (tuple, list))
            else f"a {type(attributions).__name__}"
        )
        raise InvalidInputError(
            f"attributions must be the tensor of the one input whose places change, got {found}."
        )
    return attributions


def keep_mask(keep: Tensor | None, relevance: Tensor) -> Tensor | None:
    """Returns a boolean mask ``(B, places)`` of places that never change, or None if not given.

    Raises:
        InvalidInputError: If the mask doesn't have one value per place, or values that are neither
            zero nor one.
    """
    if keep is None:
        return None
    mask = keep.to(relevance.device, torch.bool)
    truth = keep.dtype == torch.bool or bool((keep.to(mask.device) == mask).all())
    if mask.numel() != relevance.numel() or len(mask) != len(relevance) or not truth:
        raise InvalidInputError(
            "keep must hold booleans, or zeros and ones, one for each of "
            f"{tuple(relevance.shape)} places, got {keep.dtype} of shape {tuple(keep.shape)}."
        )
    return mask.reshape(relevance.shape)


def rank_places(relevance: Tensor, order: Order = "positive", keep: Tensor | None = None) -> Tensor:
    """Returns the rank of each place: 0 for the place that changes first.

    Ties are broken in reading order for both orders, so that results are reproducible.

    Args:
        relevance: ``(B, places)``.
        order: ``"positive"``: the most relevant first; ``"negative"``: the least relevant first.
        keep: Places that come last, as a bool tensor ``(B, places)``.

    Returns:
        ``(B, places)``.

    Raises:
        InvalidInputError: If the order is neither of these.

    Example:
        >>> rank_places(torch.tensor([[0.1, 0.7, 0.2, 0.7]]))
        tensor([[3, 0, 2, 1]])
    """
    if order not in ("positive", "negative"):
        raise InvalidInputError(f"order must be 'positive' or 'negative', got {order!r}.")
    places = relevance.argsort(dim=1, descending=order == "positive", stable=True)
    if keep is not None:
        last = keep.gather(1, places).to(torch.uint8).argsort(dim=1, stable=True)
        places = places.gather(1, last)
    return ranks_of(places)


def ranks_of(places: Tensor) -> Tensor:
    """Returns the rank of each place, for places in their order: ``(B, places)``."""
    ranks = torch.arange(places.shape[1], device=places.device).expand_as(places)
    return torch.empty_like(places).scatter_(1, places, ranks)


def counts(
    fractions: Sequence[float], places: Tensor, rounding: Literal["up", "down"]
) -> tuple[list[float], Tensor]:
    """Returns the number of places for each fraction.

    Args:
        fractions: Increasing numbers from 0 to 1.
        places: The number of places of each sample: ``(B,)``.
        rounding: The direction in which numbers are rounded that aren't whole.

    Returns:
        The ``F`` fractions, and the counts ``(B, F)``.

    Raises:
        InvalidInputError: If the fractions aren't increasing numbers from 0 to 1.
    """
    values = [float(fraction) for fraction in fractions]
    inside = all(0 <= value <= 1 for value in values)
    if not values or not inside or any(a >= b for a, b in pairwise(values)):
        raise InvalidInputError(
            f"fractions must be increasing numbers between 0 and 1, got {values}."
        )
    # The shares are computed on the CPU: some devices have no float64.
    share = places.cpu()[:, None].double() * torch.tensor(values, dtype=torch.float64)
    # 0.3 has no exact binary form: three tenths of ten places must be three, not four.
    whole = share.round()
    share = torch.where((share - whole).abs() < 1e-6, whole, share)
    count = (share.ceil() if rounding == "up" else share.floor()).long()
    return values, count.to(places.device)


def replace_places(inputs: Tensor, baselines: Tensor, changed: Tensor) -> Tensor:
    """Replaces some places by the baselines.

    Args:
        inputs: Token ids ``(B, N)``, embeddings ``(B, N, D)`` or images ``(B, C, H, W)``.
        baselines: The replacement, of a shape that broadcasts to the shape of the inputs.
        changed: The places that change, as a bool tensor ``(B, places)``.

    Returns:
        New inputs.

    Example:
        >>> ids, mask_id = torch.tensor([[5, 6, 7]]), torch.tensor(9)
        >>> replace_places(ids, mask_id, torch.tensor([[False, True, False]]))
        tensor([[5, 9, 7]])
    """
    where = changed.reshape(len(inputs), *place_shape(inputs))
    if where.ndim < inputs.ndim:
        where = where.unsqueeze(1 if inputs.ndim == 4 else -1)
    return torch.where(where, baselines, inputs)


def as_baselines(baselines: Baselines, inputs: Tensor) -> Tensor:
    """Returns the baselines as a tensor that is expanded to the shape of the inputs.

    Raises:
        InvalidInputError: If the baselines don't fit the inputs.
    """
    if not inputs.is_floating_point() and torch.as_tensor(baselines).is_floating_point():
        raise InvalidInputError(
            f"The inputs are ids ({inputs.dtype}): the baseline must be an id, such as that of "
            f"[MASK] or [UNK], got {baselines}."
        )
    values = torch.as_tensor(baselines, dtype=inputs.dtype, device=inputs.device)
    if inputs.ndim == 4 and values.ndim == 1:
        values = values[:, None, None]
    try:
        return values.expand_as(inputs)
    except RuntimeError as error:
        raise InvalidInputError(
            f"baselines of shape {tuple(values.shape)} don't fit inputs of shape "
            f"{tuple(inputs.shape)}: give a number, one number per channel, or a tensor that "
            "broadcasts to the inputs."
        ) from error
