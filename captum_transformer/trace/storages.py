"""Where a tensor keeps its numbers: in a storage of its own, or in those of tensors inside it.

Quantised weights and other wrappers (tensor subclasses) have no storage of their own. Models
compute with them as with any tensor; rules read plain tensors.
"""

from typing import Any

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError

_PLAIN = (Tensor, torch.nn.Parameter)


def memory_of(tensor: Tensor) -> tuple[int, ...]:
    """Keys of the memory that a tensor reads: tensors that share memory share a key.

    >>> whole = torch.zeros(2, 3)
    >>> memory_of(whole) == memory_of(whole[1].t())
    True
    """
    address = _address(tensor)
    if address:
        return (address,)
    inner = _inside(tensor)
    return tuple(key for part in inner for key in memory_of(part)) if inner else (id(tensor),)


def _address(tensor: Tensor) -> int:
    """Returns the address of the storage, or zero if there is none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


def _inside(tensor: Any) -> list[Tensor]:
    """Returns the tensors inside a wrapper subclass, or the one inside a `torch.vmap` wrapper."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return [torch._C._functorch.get_unwrapped(tensor)]
    flatten = getattr(tensor, "__tensor_flatten__", None)
    parts = [] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]
    return [part for part in parts if isinstance(part, Tensor)]


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor keeps its numbers in a storage of its own, as most tensors do."""
    return type(tensor) in _PLAIN


def dense(tensor: Tensor) -> Tensor:
    """Returns the numbers of a tensor as a plain tensor, however they are wrapped.

    Raises:
        UnsupportedOperationError: if a wrapper has neither a storage nor a ``dequantize`` method.
    """
    kind = type(tensor)
    if kind in _PLAIN:
        return tensor
    if kind.dequantize is not Tensor.dequantize:
        numbers: Tensor = tensor.dequantize()
        return dense(numbers)
    if _address(tensor) or not tensor.numel():
        return tensor.as_subclass(Tensor)  # the subclass only adds something, such as metadata
    raise UnsupportedOperationError(
        f"A rule needs the numbers in a tensor of type `{kind.__module__}.{kind.__qualname__}`, "
        "which has no storage of its own and no `dequantize` method. Explain the model with plain "
        "tensors in its place."
    )
