"""Detects whether a model's state and the objects that it leads to have changed."""

import functools
import inspect
import operator
import types
import zlib
from collections import deque
from typing import Any

import numpy as np
from torch import Tensor, nn

from captum_transformer.calling.complete import LARGEST_ARRAY
from captum_transformer.calling.contents import ATOMS, is_object, within
from captum_transformer.calling.copies import slots_of
from captum_transformer.calling.owners import Beside, of_class, reached_by
from captum_transformer.calling.random_states import stands_at

LIMIT = 100_000
"""How many values are looked at, at most."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training", "_buffers"}


class Fingerprint:
    """The state of a model and of the objects that it leads to at one time, as numbers by name.

    It detects changes that can't be undone because the object can't be copied, such as an iterator.
    Buffers and other tensors that aren't parameters count by their identity alone, as
    `CompleteState` puts back their values; parameters by their version.

    Args:
        model: the model.
        limit: the largest number of values that are inspected: a model may lead to very many.

    Attributes:
        entries: the numbers.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> model.numbers = iter([1, 2, 3])
        >>> before = Fingerprint(model)
        >>> before.differences()
        []
        >>> _ = next(model.numbers)
        >>> before.differences()
        ['numbers']
    """

    def __init__(self, model: nn.Module, limit: int = LIMIT) -> None:
        self._model = model
        self._limit = limit
        modules = dict(model.named_modules())
        self._beside = Beside(list(modules.values()))
        self.entries: dict[str, Any] = {}
        self._seen: set[int] = set()
        # Held, so that no other object gets the identity of one of them.
        self._open: list[tuple[str, Any, bool]] = []
        classes: dict[type, None] = {}
        for name, module in modules.items():
            self._look_at_module(name, module)
            classes.update(dict.fromkeys(type(module).__mro__))
        for kind in classes:
            for name, value in of_class(kind).items():
                self._note(f"{kind.__name__}.{name}", value)
        for name, value, inside in self._open:
            if len(self._open) > limit:
                break
            self._look_into(name, value, inside)

    def differences(self) -> list[str]:
        """Returns the names of values that have changed since, are new, or are gone."""
        now, before = Fingerprint(self._model, self._limit).entries, self.entries
        return [
            name
            for name in dict.fromkeys((*before, *now))
            if name not in before or name not in now or before[name] != now[name]
        ]

    def _look_at_module(self, name: str, module: nn.Module) -> None:
        prefix = f"{name}." if name else ""
        held = vars(module)
        for own, parameter in held.get("_parameters", {}).items():
            if parameter is not None:
                self.entries[prefix + own] = _of_parameter(parameter)
        for own, value in held.items():
            if own not in _OF_EVERY_MODULE:
                self._note(prefix + own, value)

    def _note(self, name: str, value: Any, *, inside: bool = False) -> None:
        if type(value) in ATOMS:
            self.entries[name] = _of_atom(value)
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self._open.append((name, value, inside))

    def _look_into(self, name: str, value: Any, inside: bool) -> None:
        if isinstance(value, (Tensor, type, types.ModuleType)):
            self.entries[name] = id(value)
        elif isinstance(value, nn.Module):
            if not self._beside(value):
                self._look_at_module(name, value)
                for own, part in value.named_children():
                    self._note(f"{name}.{own}", part)
        elif isinstance(value, np.ndarray):
            self.entries[name] = _of_array(value)
        elif (state := stands_at(value)) is not None:
            self.entries[name] = _of_state(state)
        elif isinstance(value, (dict, list, tuple, set, frozenset, deque)):
            self._look_into_container(name, value, inside)
        elif inspect.isroutine(value) or isinstance(value, functools.partial):
            for own, part in reached_by(value):
                self._note(f"{name}.{own}", part)
        elif inspect.isgenerator(value):
            frame = value.gi_frame
            self.entries[name] = None if frame is None else frame.f_lasti
            for own, part in () if frame is None else frame.f_locals.items():
                self._note(f"{name}.{own}", part)
        elif is_object(value):
            if inside or within(value, self._beside) is not None:
                self._look_into_object(name, value)
        else:
            self.entries[name] = _of_other(value)

    def _look_into_container(self, name: str, value: Any, inside: bool) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        # One entry for all values that hold no others: vocabularies are large.
        atoms = [(key, part) for key, part in items if type(part) in ATOMS]
        ordered = not isinstance(value, (set, frozenset))
        self.entries[name] = len(value), hash(tuple(atoms) if ordered else frozenset(value))
        if len(atoms) < len(value):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, part in items:
                if type(part) not in ATOMS:
                    self._note(f"{name}[{key!s:.40}]", part, inside=inside)
        if type(value) not in (dict, list, tuple, set, frozenset, deque):
            self._look_into_object(name, value)

    def _look_into_object(self, name: str, value: Any) -> None:
        for own, part in getattr(value, "__dict__", {}).items():
            self._note(f"{name}.{own}", part, inside=True)
        for own in slots_of(type(value)):
            if hasattr(value, own):
                self._note(f"{name}.{own}", getattr(value, own), inside=True)


def _of_parameter(parameter: Tensor) -> Any:
    if type(parameter) is not nn.Parameter or parameter.is_inference():
        return id(parameter)
    place = id(parameter), parameter.dtype, parameter.device, parameter.requires_grad
    return *place, parameter._version


def _of_atom(value: Any) -> Any:
    # NaN differs from itself.
    return type(value), repr(value) if isinstance(value, float) else value


def _of_array(array: Any) -> Any:
    if array.dtype == object:
        return array.shape
    if array.nbytes > LARGEST_ARRAY:
        array = array.reshape(-1)[:: array.size // 4096]
    return array.shape, array.dtype.str, zlib.crc32(np.ascontiguousarray(array).tobytes())


def _of_state(state: Any) -> Any:
    return zlib.crc32(state.numpy().tobytes()) if isinstance(state, Tensor) else repr(state)


def _of_other(value: Any) -> Any:
    """Returns what can be seen of a value without attributes, such as an iterator or bytes."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return zlib.crc32(value)
    try:
        return operator.length_hint(value, -1), f"{value!r:.200}"
    except Exception:
        return id(value)
