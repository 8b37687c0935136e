"""Fused norms: which rows they normalise, and what they divide by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.operation import Operation


@dataclass(frozen=True)
class Normalisation:
    """How a fused norm normalises.

    Attributes:
        rows: the shape to which the input is reshaped so that each row is normalised by itself.
        scale: the shape to which the weights are reshaped so that they broadcast to the input.
        eps: the constant that is added to the variance.
        centred: whether the mean is subtracted.
        over_samples: whether rows run over the samples; rows have the first two dimensions swapped.
        by_constants: whether it divides by constants, such as running statistics.
    """

    rows: tuple[int, ...] = ()
    scale: tuple[int, ...] = ()
    eps: float = 0.0
    centred: bool = True
    over_samples: bool = False
    by_constants: bool = False

    def in_rows(self, tensor: Tensor) -> Tensor:
        """Reshapes a tensor that has the layout of the norm's input into rows."""
        return (tensor.transpose(0, 1) if self.over_samples else tensor).reshape(self.rows)

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `in_rows`."""
        if not self.over_samples:
            return rows.reshape(shape)
        return rows.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)

    def inverse_deviation(self, tensor: Tensor) -> Tensor:
        """Returns the factor by which the norm multiplies each row of its input."""
        rows = self.in_rows(tensor.to(accumulation_dtype(tensor.dtype)))
        if not self.centred:
            return (rows.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        # Far faster than `var`.
        _, _, inverse = torch.native_layer_norm(rows, rows.shape[-1:], None, None, self.eps)
        return inverse


def normalisation(operation: Operation) -> Normalisation | None:
    """Returns how a fused norm normalises, or None if that is not known."""
    known = _NORMS.get(operation.name)
    return None if known is None else known(operation.arguments)


def _features(arguments: Mapping[str, Any], *, centred: bool) -> Normalisation:
    size, shape, eps = arguments["input"].size, arguments["normalized_shape"], arguments.get("eps")
    if eps is None:
        dtype = accumulation_dtype(arguments["input"].dtype)
        eps = 1e-5 if centred else torch.finfo(dtype).eps
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return Normalisation((*size[: len(size) - len(shape)], prod(shape)), shape, eps, centred)


def _groups(arguments: Mapping[str, Any]) -> Normalisation:
    size = arguments["input"].size
    groups = arguments["num_groups"]
    rows = (size[0], groups, prod(size[1:]) // groups)
    return Normalisation(rows, _of_channels(size), arguments.get("eps", 1e-5))


def _channels(arguments: Mapping[str, Any]) -> Normalisation:
    if not arguments.get("use_input_stats", True):
        return Normalisation(by_constants=True)
    size = arguments["input"].size
    rows = (size[0], size[1], prod(size[2:]))
    return Normalisation(rows, _of_channels(size), arguments.get("eps", 1e-5))


def _batch(arguments: Mapping[str, Any]) -> Normalisation:
    if arguments.get("running_mean") is not None and not arguments.get("training"):
        return Normalisation(by_constants=True)
    size = arguments["input"].size
    eps = arguments.get("eps", 1e-5)
    rows = (size[1], size[0] * prod(size[2:]))
    return Normalisation(rows, _of_channels(size), eps, over_samples=True)


def _of_channels(size: torch.Size) -> tuple[int, ...]:
    return (-1, *[1] * (len(size) - 2))


_NORMS: dict[str, Callable[[Mapping[str, Any]], Normalisation]] = {
    **dict.fromkeys(("layer_norm", "native_layer_norm"), lambda a: _features(a, centred=True)),
    **dict.fromkeys(("rms_norm", "fused_rms_norm"), lambda a: _features(a, centred=False)),
    "group_norm": _groups,
    "instance_norm": _channels,
    "batch_norm": _batch,
}
