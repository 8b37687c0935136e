"""Copies of a model's arguments, so that the model can't change those of the caller."""

import copy
import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def copied(argument: Any) -> Any:
    """Returns a copy of (nested) arguments, down to the tensors, which are clones without a graph.

    A model may write into its arguments, for instance into a key/value cache or a list. It gets a
    copy for each forward pass, so that each starts from what the caller has passed. Tensors that
    overlap in memory also overlap in the copy. Modules, functions and objects that Python can't
    copy, such as locks, stay the same objects.

    Args:
        argument: tensors in nested containers and objects of any class.

    Example:
        >>> import torch
        >>> cache = {"keys": [torch.ones(1, requires_grad=True)]}
        >>> copied(cache)
        {'keys': [tensor([1.])]}
    """
    return _Copies(_Clones()).of(argument)


def with_own_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a ``functools.partial`` with copied arguments; any other function unchanged."""
    if not isinstance(function, functools.partial):
        return function
    args, kwargs = copied((function.args, function.keywords))
    return functools.partial(with_own_arguments(function.func), *args, **kwargs)


def tensors_in(argument: Any) -> list[Tensor]:
    """Returns all tensors in (nested) arguments, also in attributes of objects, each once.

    >>> import torch
    >>> len(tensors_in([{"mask": torch.ones(2)}, "text", (torch.ones(1),)]))
    2
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _Copies(note).of(argument)
    return found


class _Copies:
    """Copies nested objects, each once, and replaces each tensor by a function of it."""

    def __init__(self, tensor: Callable[[Tensor], Tensor]) -> None:
        self._tensor = tensor
        self._known: dict[int, Any] = {}

    def of(self, item: Any) -> Any:
        if id(item) in self._known:
            return self._known[id(item)]
        if isinstance(item, Tensor):
            new = self._known[id(item)] = self._tensor(item)
            return new
        if isinstance(item, (nn.Module, type)) or inspect.isroutine(item):
            return item
        if isinstance(item, tuple):
            return self._of_tuple(item)
        try:
            new = copy.copy(item)
        except Exception:
            return item
        # Python returns immutable objects themselves: numbers, strings, enumerations.
        if new is not item:
            self._known[id(item)] = new
            self._fill(new)
        return new

    def _of_tuple(self, item: tuple[Any, ...]) -> Any:
        parts = [self.of(part) for part in item]
        if all(new is part for new, part in zip(parts, item, strict=True)):
            return item
        kind: Any = type(item)
        return kind(*parts) if hasattr(item, "_fields") else kind(parts)

    def _fill(self, new: Any) -> None:
        """Replaces by copies the objects that a shallow copy still shares with its original."""
        if isinstance(new, dict):
            for key, value in list(new.items()):
                new[key] = self.of(value)
        elif isinstance(new, (list, deque)):
            for place, value in enumerate(new):
                new[place] = self.of(value)
        elif isinstance(new, set):
            members = [self.of(value) for value in new]
            new.clear()
            new.update(members)
        attributes = getattr(new, "__dict__", {})
        for name, value in list(attributes.items()):
            attributes[name] = self.of(value)
        for name in slots_of(type(new)):
            if hasattr(new, name):
                object.__setattr__(new, name, self.of(getattr(new, name)))


def slots_of(kind: type) -> Iterator[str]:
    """Yields the attributes that objects of a class have in addition to their ``__dict__``."""
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__")
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if private else name


class _Clones:
    """Clones tensors; clones of tensors that overlap in memory share their memory, too."""

    def __init__(self) -> None:
        self._by_storage: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        clone = tensor.detach().clone()
        if not _is_plain(tensor):
            return clone
        others = self._by_storage.setdefault(tensor.untyped_storage()._cdata, [])
        others.append((tensor, clone))
        overlap = [pair for pair in others[:-1] if _overlap(pair[0], tensor)]
        if overlap:
            memory = copy.copy(tensor.untyped_storage())
            for original, its_clone in others:
                offset = original.storage_offset()
                its_clone.set_(memory, offset, original.shape, original.stride())
        return clone


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided


def _overlap(one: Tensor, other: Tensor) -> bool:
    (low, high), (start, stop) = _span(one), _span(other)
    return low < stop and start < high


def _span(tensor: Tensor) -> tuple[int, int]:
    """Returns where in its storage a tensor's bytes start and stop."""
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    size = tensor.element_size()
    start = int(tensor.storage_offset()) * size
    return start, start + (int(reach) + 1) * size if tensor.numel() else start
