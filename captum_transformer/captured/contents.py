"""Reads what objects hold, without running their own code."""

import functools
import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from captum_transformer.calling.contents import items_of
from captum_transformer.calling.copies import slots_of

_MISSING = object()
_Cached = type(functools.cache(len))
_OF_FUNCTIONS = (MethodType, property, staticmethod, classmethod)
# Containers without attributes; that of an ordered dictionary are looked at.
PLAIN = frozenset({dict, OrderedDict, list, set, frozenset, tuple, deque})
# Attributes of every module; those for training or for saving have no part in a forward pass.
OF_MODULES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def reader_of(item: Any) -> Callable[[Any], Mapping[Any, Any]] | None:
    """Returns what reads the contents of an object other than its attributes, if it has any.

    They are taken from where they are kept: an object's own `__getitem__` or `__iter__` may make
    something else of them, and anew each time.
    """
    for kinds, read in _READERS:
        if isinstance(item, kinds):
            return read
    return None


def has_attributes(item: Any) -> bool:
    """Returns whether an object has attributes of its own."""
    if isinstance(item, _OF_FUNCTIONS):  # those are the function's, which stays the same
        return False
    kind: Any = type(item)
    return hasattr(item, "__dict__") or any(slots_of(kind)) or bool(_members_of(kind))


_READERS: list[tuple[Any, Callable[[Any], Mapping[Any, Any]]]] = [
    (dict, items_of),
    ((list, tuple, deque), lambda item: dict(enumerate(items_of(item)))),
    (set, lambda item: {"members": frozenset(items_of(item))}),
    (frozenset, lambda _: {}),
    (ContextVar, lambda item: {"value": item.get(_MISSING)}),
    (functools.partial, lambda item: {"f": item.func, "args": item.args, "names": item.keywords}),
    (MethodType, lambda item: {"self": item.__self__, "function": item.__func__}),
    (ref, lambda item: {"target": item()}),
    # What a function has cached follows from what it is.
    (_Cached, lambda item: {"wrapped": item.__wrapped__}),
]


def bytes_of(item: Any) -> bytes | None:
    """Returns the bytes of a buffer that may be written to, such as an `array.array`."""
    try:
        with memoryview(item) as view:
            return None if view.readonly else view.tobytes()
    except TypeError:
        return None


def form_of_array(array: Any) -> Any:
    """Returns all that decides what may be read of an array; of objects, which ones they are."""
    plain = array.view(np.ndarray)
    return plain.dtype, plain.shape, plain.tobytes()


@functools.cache
def _members_of(kind: type) -> list[str]:
    """Returns the names of what objects of a class hold that is written in C."""
    return [
        name
        for base in kind.__mro__
        if "__slots__" not in vars(base)
        for name, value in vars(base).items()
        if isinstance(value, MemberDescriptorType) and not name.startswith("__")
    ]


def attributes_of(
    item: Any, names: frozenset[str] | None, but: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Returns the attributes of an object, or those with some names."""
    held = getattr(item, "__dict__", {})
    found = {k: held[k] for k in held if k not in but and (names is None or k in names)}
    for name in slots_of(type(item)):
        if (names is None or name in names) and hasattr(item, name):
            found[name] = getattr(item, name)
    kind: Any = type(item)
    for name in _members_of(kind):
        if hasattr(item, name):
            found[name] = getattr(item, name)
    return found


def some_of(names: set[str] | frozenset[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the names that have one."""
    return {name: values[name] for name in names if name in values}


def parts_of_function(function: FunctionType) -> dict[str, Any]:
    """Returns the code of a function, its defaults, and the contents of its closure."""
    found: dict[str, Any] = {
        "__code__": function.__code__,
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
    }
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            found[name] = _MISSING
    return found


def holds_tensors(tensor: Tensor) -> bool:
    """Returns whether a tensor has a class of its own and holds others, as quantised weights do."""
    own = type(tensor) not in (Tensor, nn.Parameter)
    return own and any(isinstance(value, Tensor) for value in vars(tensor).values())


def inner_of(tensor: Tensor) -> dict[str, Any]:
    """Returns what a tensor of a package's own class holds."""
    return dict(vars(tensor))


def is_resolved(tensor: Tensor) -> bool:
    """Returns whether the numbers of a tensor are those in its memory.

    PyTorch may conjugate or negate them only where they are read, as for ``z.conj()``.
    """
    return not (tensor.is_conj() or tensor.is_neg())


def resolved(tensor: Tensor) -> Tensor:
    """Returns a tensor with these numbers in its memory, in the same order."""
    if is_resolved(tensor):
        return tensor
    like = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return like.copy_(tensor.detach())


def identity_of(tensor: Tensor, by: str) -> Any:
    """Returns the `id`, `data_ptr` or `_version` of a tensor, or None if it has none."""
    if by == "id":
        return id(tensor)
    try:
        return tensor.data_ptr() if by == "data_ptr" else tensor._version
    except RuntimeError:  # such as an inference tensor's version
        return None


# The names of what `metadata_of` returns, as the messages have them.
METADATA = (
    *("the dtype", "the shape", "the device", "whether a gradient is required"),
    *("the strides", "whether the memory has the numbers"),
)


def metadata_of(tensors: Sequence[Tensor]) -> list[Any]:
    """Returns the properties of tensors that decide which operations run."""
    strides, plain = map(Tensor.stride, tensors), map(is_resolved, tensors)
    every = zip(map(_ATTRIBUTES, tensors), strides, plain, strict=True)
    return [(*attributes, *others) for attributes, *others in every]


_ATTRIBUTES = operator.attrgetter("dtype", "shape", "device", "requires_grad")
