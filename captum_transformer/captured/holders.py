"""The contents of objects, by the names that a user would use, now and when recorded."""

import operator
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from captum_transformer.calling.copies import slots_of

_MISSING = object()


class Holder:
    """The contents of an object, now and when they were recorded.

    Args:
        path: the name that a user would use for the object.
        owner: the object.
        read: returns the contents of the object, by keys.
    """

    def __init__(self, path: str, owner: Any, read: Callable[[Any], Mapping[Any, Any]]) -> None:
        self.path = path
        self.owner = owner
        self._read = read
        held = read(owner)
        self.keys = list(held)
        self.values = list(held.values())
        # Most of them are modules and dictionaries, and there are many.
        own = owner if isinstance(owner, Mapping) else getattr(owner, "__dict__", None)
        self._own = own if own is not None and own.keys() >= held.keys() else None
        self._count = len(self._own or ())
        self._getter = _getter(self.keys)

    def is_unchanged(self) -> bool:
        """Returns whether it holds the same objects, as far as a quick check can tell."""
        own = self._own
        if type(self.owner) is FunctionType and not self.owner.__closure__:
            held = self.owner.__code__, self.owner.__defaults__, self.owner.__kwdefaults__
            return all(map(operator.is_, held, self.values))
        if own is None or len(own) != self._count:
            return False
        try:
            return all(map(operator.is_, self._getter(own), self.values))
        except KeyError:
            return False

    def now(self) -> list[Any] | None:
        """Returns what it holds now, or None if the keys have changed."""
        held = self._read(self.owner)
        return list(held.values()) if list(held) == self.keys else None

    def difference(self) -> str:
        """Describes which keys are new or missing."""
        held = self._read(self.owner)
        new = [key for key in held if key not in self.keys]
        missing = [key for key in self.keys if key not in held]
        return f"{self.path} has {f'new {new}' if new else f'no {missing} any more'}"

    def name(self, number: int) -> str:
        """Returns the name that a user would use for one of the values."""
        key = self.keys[number]
        joint = f".{key}" if isinstance(key, str) else f"[{key!r}]"
        for plain in ("._parameters", "._buffers", "._modules"):
            if self.path.endswith(plain):
                return f"{self.path.removesuffix(plain)}{joint}"
        return f"{self.path}{joint}"


def _getter(keys: Sequence[Any]) -> Callable[[Any], Sequence[Any]]:
    if len(keys) > 1:
        return operator.itemgetter(*keys)
    return lambda held: [held[key] for key in keys]


def attributes_of(
    item: Any, names: frozenset[str] | None, but: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Returns the attributes of an object, or those with some names."""
    held = getattr(item, "__dict__", {})
    found = {k: held[k] for k in held if k not in but and (names is None or k in names)}
    for name in slots_of(type(item)):
        if (names is None or name in names) and hasattr(item, name):
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


def metadata_of(tensor: Tensor) -> Any:
    """Returns the properties of a tensor that decide which operations run."""
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.device, tensor.requires_grad
