"""Determines the samples of a batch, even if a collate function moved or dropped some."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, default_convert

from captum_transformer.calling.random_states import random_state
from lightning_callbacks.shared.flavors import MisconfigurationException

BatchToIds = str | Callable[[Any], Any]
"""The name of a batch's entry with the samples' indices, or a function that reads them."""


def require_order(
    loader: DataLoader[Any], ids: Sequence[int], hooks: Callable[[Any], Any] | None = None
) -> None:
    """Tests a collate function that isn't PyTorch's own, and hooks, on some samples.

    Args:
        loader: The loader.
        ids: The samples' indices in its data set.
        hooks: The function that changes a batch on its way to the model, or None.

    Raises:
        MisconfigurationException: If it isn't certain that samples stay in their places.
    """
    collate = loader.collate_fn
    own = collate not in (default_collate, default_convert)
    if not own and hooks is None:
        return
    tried = list(ids)
    if len(tried) == 2:  # a swap can't be detected with only two samples
        tried += [n for n in range(min(3, len(loader.dataset))) if n not in tried][:1]  # type: ignore[arg-type]
    with random_state(set()):
        items = [loader.dataset[number] for number in tried]
    with random_state(set(), seed=0):
        if own and not keeps_order(collate, items):
            name = getattr(collate, "__name__", type(collate).__name__)
            raise MisconfigurationException(_REFUSAL.format(f"The loader's collate_fn, {name},"))
    if hooks is None:
        return
    if not _follows(lambda some: hooks(collate(some)), items, seed=0).holds:
        raise MisconfigurationException(_REFUSAL.format("A hook on a batch's way to the model"))


_REFUSAL = (
    "{} does not leave each sample where it was, or draws random numbers, so which explanation is "
    "of which sample can't be known. Let the data set put its index into each sample, and say by "
    "RelevanceWriter(..., ids=...) where a batch has it. If it does keep the order and all "
    "samples, pass collate_keeps_order=True."
)


def require_batches_in_order(loader: DataLoader[Any]) -> None:
    """Raises an error for a loader that yields batches as soon as they are ready.

    Args:
        loader: The loader.

    Raises:
        MisconfigurationException: If its batches may come in another order.
    """
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        raise MisconfigurationException(
            "The loader has in_order=False, so which samples a batch consists of can't be known. "
            "Leave it out, or let the data set put its index into each sample, and say by "
            "RelevanceWriter(..., ids=...) where a batch has it."
        )


def keeps_samples(read: Callable[[Any], Any], batch: Any, count: int) -> bool:
    """Tests whether a function leaves the samples of a batch in their places.

    The function is called with the samples in several orders, which its results must follow.

    Args:
        read: The function.
        batch: The batch.
        count: The number of samples in it.

    Returns:
        Whether it does; also True if no part of the batch is known to have an entry per sample.

    Example:
        >>> keeps_samples(lambda batch: -batch, torch.tensor([3, 1, 2]), 3)
        True
        >>> keeps_samples(lambda batch: batch.sort().values, torch.tensor([3, 1, 2]), 3)
        False
    """
    orders = _orders(count)
    if not orders or rearranged(batch, orders[0]) is batch:
        return True
    made = []
    for each in (batch, *(rearranged(batch, order) for order in orders)):
        with random_state(set(), seed=0):
            made.append(read(each))
    return _all([_ordered(made[0], *pair) for pair in zip(made[1:], orders, strict=True)]).holds


def rearranged(batch: Any, order: Sequence[int]) -> Any:
    """Returns a batch with its samples in another order.

    Args:
        batch: The batch.
        order: The index of the sample for each place.

    Returns:
        A new batch, or the same batch if no part of it is known to have an entry for each sample.
    """
    count = len(order)
    if isinstance(batch, Tensor):
        return batch[list(order)] if batch.dim() and len(batch) == count else batch
    if isinstance(batch, np.ndarray):
        return batch[list(order)] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, MutableMapping):
        parts = {key: rearranged(part, order) for key, part in batch.items()}
        if all(part is batch[key] for key, part in parts.items()):
            return batch
        other = copy.copy(batch)
        other.update(parts)
        return other
    if type(batch) in (list, tuple):
        whole = [rearranged(part, order) for part in batch]
        if any(new is not old for new, old in zip(whole, batch, strict=True)):
            return type(batch)(whole)
        return type(batch)(batch[number] for number in order) if len(batch) == count else batch
    return batch


def keeps_order(collate: Callable[[list[Any]], Any], items: Sequence[Any]) -> bool:
    """Tests whether a collate function leaves samples in their places.

    The function is called with the samples in several orders, which its results must follow. They
    don't if the function sorts samples.

    Args:
        collate: Converts a list of samples to a batch.
        items: Some samples, at least two of them different.

    Returns:
        Whether it does; also False if this can't be determined, for example because the function
        draws random numbers.

    Example:
        >>> keeps_order(torch.tensor, [3, 1, 2])
        True
        >>> keeps_order(lambda numbers: torch.tensor(sorted(numbers)), [3, 1, 2])
        False
    """
    found = _follows(collate, items)
    return found.holds and found.tells


def _orders(count: int) -> list[list[int]]:
    """Returns orders that generate all others; only a function that moves nothing follows each."""
    return [] if count < 2 else [[*range(1, count), 0], [1, 0, *range(2, count)]]


class _Ordered(NamedTuple):
    """Whether a batch has the samples of another in a given order, and whether this shows it."""

    holds: bool
    tells: bool


def _follows(
    make: Callable[[list[Any]], Any], items: Sequence[Any], seed: int | None = None
) -> _Ordered:
    """Returns whether batches follow the order of their samples; a seed is set for each batch."""
    orders = _orders(len(items))
    made = []
    for order in ([*range(len(items))], *orders):
        some = [copy.deepcopy(items[number]) for number in order]
        with nullcontext() if seed is None else random_state(set(), seed=seed):
            made.append(make(some))
    return _all([_ordered(made[0], *pair) for pair in zip(made[1:], orders, strict=True)])


def _ordered(forth: Any, other: Any, order: Sequence[int]) -> _Ordered:
    count = len(order)
    if (
        isinstance(forth, np.ndarray)
        and isinstance(other, np.ndarray)
        and forth.dtype.kind in "biufc"
    ):
        forth, other = torch.from_numpy(forth), torch.from_numpy(other)
    if isinstance(forth, Tensor) and isinstance(other, Tensor):
        if count and forth.dim() and len(forth) == count:
            expected = forth[list(order)]
            return _Ordered(_equal(expected, other), not _equal(forth, expected))
        return _Ordered(_equal(forth, other), tells=False)
    if isinstance(forth, Mapping) and isinstance(other, Mapping):
        return _all([_ordered(forth[key], other.get(key), order) for key in forth])
    if isinstance(forth, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(forth) != len(other):
            return _Ordered(holds=False, tells=False)
        parts = _all([_ordered(*pair, order) for pair in zip(forth, other, strict=True)])
        if not count or len(forth) != count:
            return parts
        # If there are as many parts as samples, each may be a sample, or e.g. inputs and labels.
        chosen = [forth[number] for number in order]
        rows = all(_ordered(*pair, ()).holds for pair in zip(chosen, other, strict=True))
        same = all(_ordered(*pair, ()).holds for pair in zip(chosen, forth, strict=True))
        if rows:
            return _Ordered(holds=True, tells=not same)
        return parts if parts.tells else _Ordered(holds=False, tells=False)
    if is_dataclass(forth) or hasattr(forth, "__dict__"):
        return _ordered(vars(forth), vars(other) if hasattr(other, "__dict__") else None, order)
    return _Ordered(bool(forth == other), tells=False)


def _all(parts: Sequence[_Ordered]) -> _Ordered:
    return _Ordered(all(part.holds for part in parts), any(part.tells for part in parts))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if one.is_floating_point() or one.is_complex():
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return torch.equal(one, other)


def read_ids(batch: Any, ids: BatchToIds, samples: int) -> list[int]:
    """Reads the samples' indices from a batch.

    Args:
        batch: The batch.
        ids: The name of the batch's entry with the indices, or a function that reads them.
        samples: The number of samples in the data set.

    Returns:
        The indices.

    Raises:
        ValueError: If there are none, or they aren't valid indices of different samples.

    Example:
        >>> read_ids({"number": torch.tensor([4, 2])}, "number", 5)
        [4, 2]
    """
    if callable(ids):
        found = ids(batch)
    elif isinstance(batch, Mapping):
        found = batch.get(ids)
    else:
        found = getattr(batch, ids, None)
    values = found.tolist() if isinstance(found, (Tensor, np.ndarray)) else found
    if not isinstance(values, (list, tuple)) or not all(type(each) is int for each in values):
        raise ValueError(
            f"ids={ids!r} must give the index in the data set of each sample of a batch, as whole "
            f"numbers, got {type(found).__name__} from a {type(batch).__name__}. Let the data set "
            "put the index into each sample, and the collate function hand it on."
        )
    require_ids(values, samples, f"ids={ids!r}")
    if len(set(values)) < len(values):
        raise ValueError(f"ids={ids!r} gives a sample twice in one batch: {values}.")
    return list(values)


def require_ids(ids: Sequence[Any], samples: int, source: str) -> None:
    """Raises an error for values that aren't indices of a data set.

    Args:
        ids: The indices of a batch's samples.
        samples: The number of samples in the data set.
        source: Where the indices come from, for the message.

    Raises:
        ValueError: If one of them isn't an index of the data set.
    """
    for each in ids:
        if not isinstance(each, (int, np.integer)) or each not in range(samples):
            raise ValueError(
                f"{source} gives {each!r}, but the data set has the samples 0 to {samples - 1}."
            )
