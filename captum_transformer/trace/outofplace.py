"""What a function that writes into its first argument gives if it does not."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _setitem(tensor: Tensor, index: Any, value: Any) -> Tensor:
    result = tensor.clone()
    result[index] = value
    return result


def _copy(tensor: Tensor, source: Tensor, *_: Any, **__: Any) -> Tensor:
    return source.expand_as(tensor)


def _as_strided_scatter(
    input: Tensor,  # noqa: A002
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int = 0,
) -> Tensor:
    """As torch's, whose derivative for the tensor that is written into is wrong."""
    result = input.clone()
    result.as_strided(size, stride, storage_offset).copy_(src)
    return result


OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "as_strided_scatter": _as_strided_scatter,
    "setitem": _setitem,
    "copy": _copy,
    "truediv": operator.truediv,
}


def out_of_place(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The callable that takes the same arguments and returns what the function would write."""
    known = OUT_OF_PLACE.get(name) or getattr(Tensor, name, None)
    return known or getattr(torch, name, None) or function
