"""Which samples a batch consists of, where a collate function may have moved or dropped them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, default_convert

from captum_transformer.calling.random_states import random_state
from lightning_callbacks.shared.flavors import MisconfigurationException

BatchToIds = str | Callable[[Any], Any]
"""The name of a batch's entry that holds the samples' indices, or what reads them from a batch."""


def require_order(loader: DataLoader[Any], ids: Sequence[int]) -> None:
    """Tries a loader's collate function out on some samples, unless it is PyTorch's own.

    Args:
        loader: The loader.
        ids: The samples' indices in its data set.

    Raises:
        MisconfigurationException: If it isn't seen to leave them where they are.
    """
    collate = loader.collate_fn
    if collate in (default_collate, default_convert):
        return
    with random_state(set()):
        items = [loader.dataset[number] for number in ids]
    with random_state(set(), seed=0):
        if keeps_order(collate, items):
            return
    name = getattr(collate, "__name__", type(collate).__name__)
    raise MisconfigurationException(
        f"The loader's collate_fn, {name}, does not leave each sample where it was, or draws "
        "random numbers, so which explanation is of which sample can't be known. Let the data set "
        "put its index into each sample, and say by RelevanceWriter(..., ids=...) where a batch "
        "has it. If the function does keep the order and all samples, pass "
        "collate_keeps_order=True."
    )


def keeps_order(collate: Callable[[list[Any]], Any], items: Sequence[Any]) -> bool:
    """Tries out whether a collate function leaves samples where they are.

    It gets the samples once as they are and once from the last to the first. What it makes of them
    must then be turned round, too, and so it isn't where samples are sorted.

    Args:
        collate: Makes a batch of samples.
        items: Some samples, at least two of them different.

    Returns:
        False also where it can't be seen, as where the function draws random numbers.

    Example:
        >>> keeps_order(torch.tensor, [3, 1, 2])
        True
        >>> keeps_order(lambda numbers: torch.tensor(sorted(numbers)), [3, 1, 2])
        False
    """
    forth = collate(copy.deepcopy(list(items)))
    back = collate(copy.deepcopy(list(reversed(items))))
    found = _turned(forth, back, len(items))
    return found.holds and found.tells


class _Turned(NamedTuple):
    """Whether two batches have the same samples the other way round, and whether one can tell."""

    holds: bool
    tells: bool


def _turned(forth: Any, back: Any, count: int) -> _Turned:
    if (
        isinstance(forth, np.ndarray)
        and isinstance(back, np.ndarray)
        and forth.dtype.kind in "biufc"
    ):
        forth, back = torch.from_numpy(forth), torch.from_numpy(back)
    if isinstance(forth, Tensor) and isinstance(back, Tensor):
        if forth.dim() and len(forth) == count:
            return _Turned(_equal(forth, back.flip(0)), not _equal(forth, forth.flip(0)))
        return _Turned(_equal(forth, back), tells=False)
    if isinstance(forth, Mapping) and isinstance(back, Mapping):
        return _all([_turned(forth[key], back.get(key), count) for key in forth])
    if isinstance(forth, (list, tuple)) and isinstance(back, (list, tuple)):
        if len(forth) != len(back):
            return _Turned(holds=False, tells=False)
        parts = _all([_turned(*pair, count) for pair in zip(forth, back, strict=True)])
        if len(forth) != count:
            return parts
        # As many parts as there are samples may be one of each, or for instance inputs and labels.
        rows = all(_turned(*pair, -1).holds for pair in zip(forth, reversed(back), strict=True))
        same = all(_turned(*pair, -1).holds for pair in zip(forth, reversed(forth), strict=True))
        if rows:
            return _Turned(holds=True, tells=not same)
        return parts if parts.tells else _Turned(holds=False, tells=False)
    if is_dataclass(forth) or hasattr(forth, "__dict__"):
        return _turned(vars(forth), vars(back) if hasattr(back, "__dict__") else None, count)
    return _Turned(bool(forth == back), tells=False)


def _all(parts: Sequence[_Turned]) -> _Turned:
    return _Turned(all(part.holds for part in parts), any(part.tells for part in parts))


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
        ids: What holds them.
        samples: How many samples the data set has.

    Returns:
        The indices.

    Raises:
        ValueError: If there are none, or these can't be indices of different samples.

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
    """Refuses what can't be indices in a data set.

    Args:
        ids: What a batch is said to consist of.
        samples: How many samples the data set has.
        source: What says so.

    Raises:
        ValueError: If one of them is no such index.
    """
    for each in ids:
        if not isinstance(each, (int, np.integer)) or each not in range(samples):
            raise ValueError(
                f"{source} gives {each!r}, but the data set has the samples 0 to {samples - 1}."
            )
