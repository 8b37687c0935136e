"""Records and restores the contents of containers and objects, which stay the same objects."""

import inspect
import operator
from collections import OrderedDict, deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_transformer.calling.copies import slots_of

CONTAINERS = (dict, list, set, deque)
# Types of which nothing has to be recorded; most attributes have one of them.
ATOMS = frozenset({bool, int, float, str, type(None), type})
_BESIDE_MODULES = (nn.Module, nn.Parameter, Dataset)
_BASES: tuple[Any, ...] = (OrderedDict, dict, list, set, frozenset, deque, tuple)
_PLAIN = frozenset({dict, list, set, deque, tuple})


def is_object(value: Any) -> bool:
    """Returns whether a value may have attributes that can be written to, and is not code."""
    if isinstance(value, (type, ModuleType, nn.Module, Tensor)) or inspect.isroutine(value):
        return False
    return hasattr(value, "__dict__") or bool(list(slots_of(type(value))))


def items_of(value: Any) -> Any:
    """Returns a copy of what a container stores, a dictionary, list or set; None of others.

    A class's own `__getitem__` or `__iter__` may make something else of it, and anew each time.
    """
    if type(value) in (dict, list, set):
        return value.copy()
    base = _base_of(value)
    if base is OrderedDict:
        return {key: dict.__getitem__(value, key) for key in OrderedDict.__iter__(value)}
    if base is dict:
        return dict(dict.items(value))
    if base in (set, frozenset):
        return set(base.__iter__(value))
    return None if base is None else list(base.__iter__(value))


def _base_of(value: Any) -> Any:
    """Returns Python's class of a container."""
    return next((base for base in _BASES if isinstance(value, base)), None)


def parts_of(value: Any) -> list[Any]:
    """Returns what a container or an object holds directly."""
    items = items_of(value)
    parts = list(items.values()) if isinstance(items, dict) else list(items or ())
    if type(value) not in _PLAIN and is_object(value):
        parts += getattr(value, "__dict__", {}).values()
        parts += (getattr(value, name, None) for name in slots_of(type(value)))
    return parts


def trains_or_feeds(part: Any) -> bool:
    """Returns whether a part is a module, parameter or data set, as in trainers and loaders."""
    return isinstance(part, _BESIDE_MODULES)


def within(value: Any, beside: Callable[[Any], bool] = trains_or_feeds) -> list[Any] | None:
    """Returns an object and all that it holds, nested, or None if it isn't state of a module.

    Args:
        value: the object.
        beside: returns whether a part shows that the object isn't state of a module.
    """
    if beside(value):
        return None
    found, seen = [value], {id(value)}
    for item in found:
        for part in parts_of(item):
            if type(part) in ATOMS or id(part) in seen:
                continue
            if beside(part):
                return None
            seen.add(id(part))
            found.append(part)
    return found


class Contents:
    """The contents of one container or object.

    Args:
        holder: the container or object.

    Example:
        >>> numbers = [1, 2]
        >>> before = Contents(numbers)
        >>> numbers.append(3)
        >>> before.put_back()
        True
        >>> numbers
        [1, 2]
    """

    def __init__(self, holder: Any) -> None:
        self._holder = holder
        self._items = items_of(holder) if isinstance(holder, CONTAINERS) else None
        self._is_plain = type(holder) in _PLAIN
        if self._is_plain:  # most are, and have no attributes
            return
        self._attributes = getattr(holder, "__dict__", {}).copy()
        self._slots = {
            name: getattr(holder, name) for name in slots_of(type(holder)) if hasattr(holder, name)
        }

    def put_back(self) -> bool:
        """Restores what has changed; returns whether any item or attribute had."""
        changed = self._items is not None and _put_back(self._holder, self._items)
        if self._is_plain:
            return changed
        if hasattr(self._holder, "__dict__"):
            changed = _put_back(vars(self._holder), self._attributes) or changed
        for name in slots_of(type(self._holder)):
            if name in self._slots:
                object.__setattr__(self._holder, name, self._slots[name])
            elif hasattr(self._holder, name):
                object.__delattr__(self._holder, name)
        return changed


def _put_back(holder: Any, content: Any) -> bool:
    if is_same(holder, content):
        return False
    base = _base_of(holder)
    base.clear(holder)
    if isinstance(content, dict):
        for key, value in content.items():
            base.__setitem__(holder, key, value)
    elif isinstance(content, list):
        base.extend(holder, content)
    else:
        base.update(holder, content)
    return True


def is_same(now: Any, before: Any) -> bool:
    """Returns whether a container holds the same objects as another one."""
    plain = type(now) in (dict, list, set)
    one, other = (now, before) if plain else (items_of(now), items_of(before))
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return False
        one, other = one.values(), other.values()
    elif isinstance(one, set):
        return bool(one == other)
    return len(one) == len(other) and all(map(operator.is_, one, other))
