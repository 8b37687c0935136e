"""Functions for tensors in nested tuples, lists, mappings and dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to each tensor.

    Args:
        value: Anything.
        function: Takes a tensor and returns one.

    Returns:
        The value with the new tensors; other objects are kept.

    Example:
        >>> import torch
        >>> map_tensors({"mask": (torch.ones(1), "x")}, lambda tensor: 2 * tensor)
        {'mask': (tensor([2.]), 'x')}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(item, function) for key, item in value.items()}
        return mapped if type(value) is dict else type(value)(mapped)  # type: ignore[call-arg]
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: getattr(value, part.name) for part in fields(value) if part.init}
        return replace(value, **{k: map_tensors(item, function) for k, item in parts.items()})
    return value
