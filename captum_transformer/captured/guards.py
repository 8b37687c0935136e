"""Checks that all that a model reads besides its inputs is the same as when a call was captured.

Tensors may be replaced by others of the same shapes: they are read again for each call of the
graph, from the places where they were found. Everything else has to be the same.
"""

import functools
import operator
import os
import pickle
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captum_transformer.calling.contents import is_object
from captum_transformer.captured.arguments import Shape
from captum_transformer.captured.executed import ALONE, FORWARDS, Executed, is_of_packages
from captum_transformer.captured.holders import (
    OF_MODULES,
    Holder,
    Together,
    attributes_of,
    holds_tensors,
    identity_of,
    inner_of,
    metadata_of,
    parts_of_function,
    some_of,
)
from captum_transformer.captured.settings import settings

_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_NUMBERS = (bool, int, float)
_SEQUENCES = (list, tuple, deque)
# Python adds annotations to a class when somebody first asks for them.
_NOT_READ = frozenset({*vars(nn.Module()), "__annotations__"}) - {*OF_MODULES}
_MISSING = object()
_IMMUTABLE = 1 << 8  # `Py_TPFLAGS_IMMUTABLETYPE`
_ENVIRONMENT = frozenset({"environ", "getenv"})


class Place(NamedTuple):
    """Where a tensor is found: the number of a holder, and that of a value in it."""

    holder: int
    number: int


class Guard:
    """Everything that was read besides the inputs, and whether it has changed.

    Args:
        method: the method whose options count.
        modules: the modules that run, by name.
        executed: the code that ran.
        devices: the types of device on which it ran.
        fixed: the further arguments that are no tensors.
    """

    def __init__(
        self,
        method: Any,
        modules: Sequence[tuple[str, nn.Module]],
        executed: Executed,
        devices: Sequence[str],
        fixed: Sequence[Any] = (),
    ) -> None:
        self._devices = devices
        self._settings = settings(devices)
        self._read = executed.read()
        self._names = self._read.every - _NOT_READ
        self._holders: list[Holder] = []
        self._empty: list[tuple[str, Any]] = []
        self.metadata_of: list[Any] = []
        self._arrays: list[tuple[str, Any, Any]] = []
        self._generators: list[tuple[str, Any, bytes]] = []
        self._known: dict[int, Any] = {}
        self._modules = [module for _, module in modules]
        self._classes = list(map(type, self._modules))
        self._places: dict[int, list[Place]] = {}
        self._watched: dict[str, list[Place]] = {}
        self._identities: dict[Place, list[Any]] = {}
        for name, module in modules:
            self._add(f"model.{name}" if name else "model", module)
        self._add("method", method, everything=True)
        for item in fixed:
            self._add(getattr(item, "__qualname__", "a further argument"), item)
        for values, names in executed.names_in_globals():
            path = str(values.get("__name__"))
            if is_of_packages(path):
                # Numbers are torch's own state, such as whether parametrised weights are cached.
                numbers = {name for name in names if type(values[name]) in _NUMBERS}
                names = numbers if path.startswith("torch.") else set()
            if names:
                self._note(path, values, functools.partial(some_of, names))
        for file, names in executed.names_in_modules():
            path, reads = file.__name__, functools.partial(some_of, names)
            self._note(path, vars(file), reads, within=not is_of_packages(path))
        if self._read.own & _ENVIRONMENT:
            self._note("os.environ", os.environ, functools.partial(some_of, self._read.own))

    def places(self, tensor: Tensor) -> list[str]:
        """Returns the names under which a tensor is held."""
        return [self._holders[h].name(n) for h, n in self._places.get(id(tensor), ())]

    def watch(self, state: Mapping[str, Tensor]) -> None:
        """Sets the tensors that are read for each call."""
        self._watched = {name: self._places[id(tensor)] for name, tensor in state.items()}
        # Also those that the graph doesn't read: code may ask whether two are the same.
        self._several = [places for places in self._places.values() if len(places) > 1]
        if self._read.identities:
            self._identities = {p: self._identity(p) for (p, *_) in self._places.values()}
        self._places = {}
        self.metadata_of = metadata_of(list(state.values()))
        self._together = Together(self._holders, [container for _, container in self._empty])

    def changed(self) -> str | None:
        """Describes a change that may matter, or returns None if there is none."""
        with ALONE:
            return self._changed()

    def _changed(self) -> str | None:
        current = settings(self._devices)
        if current != self._settings:
            for name, value in current.items():
                if value != self._settings[name]:
                    return f"{name} is {value}, and was {self._settings[name]}"
        if list(map(type, self._modules)) != self._classes:
            return "a module has another class, as with a new parametrisation"
        same = self._together.is_unchanged()
        if not same and (path := next((p for p, held in self._empty if held), None)):
            return f"{path} is no longer empty"
        for holder in self._together.others if same else self._holders:
            held = holder.now()
            if held is None:
                return holder.difference()
            if not all(map(operator.is_, held, holder.values)):
                for place, (new, old) in enumerate(zip(held, holder.values, strict=True)):
                    if new is not old and not _is_alike(new, old):
                        return f"{holder.name(place)} is {_short(new)}, and was {_short(old)}"
                holder.values = held
        if not same:
            self._together.accept()
        for path, array, copy in self._arrays:
            if not np.array_equal(array, copy, equal_nan=array.dtype.kind in "fc"):
                return f"the array {path} holds other numbers"
        for places in self._several:
            one, *others = (self._holders[h].values[n] for h, n in places)
            if any(other is not one for other in others):
                names = " and ".join(self._holders[h].name(n) for h, n in places)
                return f"{names} were one tensor, and are several"
        for where, identity in self._identities.items():
            if self._identity(where) != identity:
                name = self._holders[where.holder].name(where.number)
                return f"{name} is another tensor or was written into, and the model may ask for it"
        metadata = metadata_of(self.state())
        if metadata != self.metadata_of:
            changes = zip(self._watched.values(), metadata, self.metadata_of, strict=True)
            (first, *_), new, old = next(c for c in changes if c[1] != c[2])
            return f"{self._holders[first.holder].name(first.number)} is {new}, and was {old}"
        return None

    def drawn(self) -> str | None:
        """Returns the name of a generator of NumPy that has been drawn from, if there is one."""
        drawn = (path for path, one, state in self._generators if pickle.dumps(one) != state)
        return next(drawn, None)

    def state(self) -> list[Tensor]:
        """Returns the tensors that the graph reads; call `changed` first."""
        return [self._holders[h].values[n] for ((h, n), *_) in self._watched.values()]

    def state_names(self) -> list[str]:
        """Returns the names of these tensors in the model."""
        places = (places[0] for places in self._watched.values())
        names = (self._holders[holder].name(number) for holder, number in places)
        return [name.removeprefix("model.") for name in names]

    def _identity(self, place: Place) -> list[Any]:
        """Returns what code may tell the tensor at a place from others by."""
        tensor = self._holders[place.holder].values[place.number]
        return [identity_of(tensor, by) for by in self._read.identities]

    def _add(self, path: str, item: Any, *, everything: bool = False) -> None:
        """Records an object and what it holds."""
        if isinstance(item, (*_ATOMS, Tensor, ModuleType)) or id(item) in self._known:
            return
        self._known[id(item)] = item  # also keeps it, so that no other gets its identity
        if isinstance(item, np.ndarray):
            self._arrays.append((path, item, item.copy()))
        elif isinstance(item, (np.random.Generator, np.random.RandomState)):
            self._generators.append((path, item, pickle.dumps(item)))
        elif isinstance(item, nn.Module):
            names = self._names_of(item)
            names = None if names is None else names | _MODULES
            self._note(path, item, functools.partial(attributes_of, names=names, but=_NOT_READ))
            self._add_class(type(item))
        elif isinstance(item, ContextVar):
            self._note(path, item, lambda variable: {"value": variable.get(_MISSING)})
        elif isinstance(item, functools.partial):
            self._note(path, item, lambda p: {"f": p.func, "args": p.args, "names": p.keywords})
        elif isinstance(item, MethodType):
            self._note(path, item, lambda m: {"self": m.__self__, "function": m.__func__})
        elif isinstance(item, FunctionType):
            if not _is_of_packages(item):
                self._note(path, item, parts_of_function)
                self._note(path, vars(item), functools.partial(some_of, self._names))
        elif isinstance(item, (dict, list, set, deque)) and not item:
            self._empty.append((path, item))
        elif isinstance(item, dict):
            self._note(path, item, dict)
        elif isinstance(item, _SEQUENCES):
            self._note(path, item, lambda sequence: dict(enumerate(sequence)))
        elif isinstance(item, (set, frozenset)):
            self._note(path, item, lambda some: {"members": frozenset(some)})
        elif isinstance(item, type):
            if not _is_of_packages(item):
                del self._known[id(item)]
                self._add_class(item)
        elif is_object(item):
            names = None if everything else self._names_of(item)
            self._note(path, item, functools.partial(attributes_of, names=names))
            self._add_class(type(item))

    def _names_of(self, item: Any) -> frozenset[str] | None:
        """Returns the attributes of an object that may be read, or None for all of them."""
        kind = type(item)
        if _is_of_packages(kind):
            return self._names if isinstance(item, nn.Module) else self._read.own
        forwards = any(vars(base).keys() & FORWARDS for base in kind.__mro__[:-1])
        if kind.__module__ in self._read.by_dict or (forwards and not isinstance(item, nn.Module)):
            return None
        if self._read.matches:
            return self._names.union(getattr(kind, "__match_args__", ()))
        return self._names

    def _add_class(self, kind: type) -> None:
        for base in kind.__mro__:
            changes = not base.__flags__ & _IMMUTABLE
            if changes and id(base) not in self._known:
                self._known[id(base)] = base
                names = self._names | {"forward", "__call__"}
                self._note(base.__qualname__, vars(base), functools.partial(some_of, names))

    def _note(
        self,
        path: str,
        owner: Any,
        read: Callable[[Any], Mapping[Any, Any]],
        *,
        within: bool = True,
    ) -> None:
        holder = Holder(path, owner, read)
        number = len(self._holders)
        self._holders.append(holder)
        for place, value in enumerate(holder.values):
            if isinstance(value, Tensor):
                self._places.setdefault(id(value), []).append(Place(number, place))
                if holds_tensors(value):
                    self._note(holder.name(place), value, inner_of)
            elif within:
                self._add(holder.name(place), value)


_MODULES = frozenset(OF_MODULES) | {"forward"}


def _is_of_packages(item: Any) -> bool:
    """Returns whether a class or function is Python's or torch's own, which doesn't change."""
    return is_of_packages(getattr(item, "__module__", ""))


def _is_alike(new: Any, old: Any) -> bool:
    """Returns whether a value may take the place of the recorded one."""
    if type(new) is not type(old):
        return False
    if isinstance(new, Tensor):
        return Shape.of(new) == Shape.of(old)
    if isinstance(new, MethodType):
        return bool(new == old)
    return isinstance(new, (*_ATOMS, frozenset)) and bool(new == old)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {type(value).__name__} {Shape.of(value)}"
    text = repr(value) if isinstance(value, _ATOMS) else f"another {type(value).__name__}"
    return text if len(text) < 80 else text[:77] + "..."
