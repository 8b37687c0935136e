"""Finds what a model reads besides its inputs, wherever Python holds it."""

import functools
import gc
import io
import os
import pickle
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field
from logging import Filterer
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OperatorBase

from captum_transformer.captured.contents import (
    OF_MODULES,
    PLAIN,
    attributes_of,
    bytes_of,
    form_of_array,
    has_attributes,
    holds_tensors,
    inner_of,
    parts_of_function,
    reader_of,
    some_of,
)
from captum_transformer.captured.executed import FORWARDS, Executed, is_of_packages
from captum_transformer.captured.holders import Holder
from captum_transformer.errors import CaptureError

ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_NUMBERS = (bool, int, float)
# Code and descriptions of classes, which don't change, loggers, and operations of torch: what they
# hold decides nothing.
_CODE = (
    *(types.CodeType, types.UnionType, types.GenericAlias, Field, Filterer, OperatorBase),
    *(types.GetSetDescriptorType, types.MemberDescriptorType),
    *(types.MethodDescriptorType, types.WrapperDescriptorType),
)
# Python adds annotations to a class when somebody first asks for them.
_NOT_READ = frozenset({*vars(nn.Module()), "__annotations__"}) - {*OF_MODULES}
_MODULES = frozenset(OF_MODULES) | {"forward"}
_IMMUTABLE = 1 << 8  # `Py_TPFLAGS_IMMUTABLETYPE`


class Place(NamedTuple):
    """Where a tensor is found: the number of a holder, and that of a value in it."""

    holder: int
    number: int


class Gathered:
    """Everything that may be read, found from the modules and the code that ran.

    Args:
        method: the method whose options count.
        modules: the modules that run, by name.
        executed: the code that ran.
        fixed: the further arguments that are no tensors.

    Attributes:
        read: the names that the code uses.
        holders: what objects hold, by the names that are read.
        empty: containers that are empty, with their names.
        arrays: arrays of NumPy, with their names and what they hold.
        bytes: other buffers, with their names and copies.
        generators: generators of NumPy, with their names and states.
        objects: the modules and objects whose classes decide what is read.
        places: where each tensor is found.
    """

    def __init__(
        self,
        method: Any,
        modules: Sequence[tuple[str, nn.Module]],
        executed: Executed,
        fixed: Sequence[Any],
    ) -> None:
        self.read = executed.read()
        self.holders: list[Holder] = []
        self.empty: list[tuple[str, Any]] = []
        self.arrays: list[tuple[str, Any, Any]] = []
        self.bytes: list[tuple[str, Any, bytes]] = []
        self.generators: list[tuple[str, Any, bytes]] = []
        self.objects: list[Any] = [module for _, module in modules]
        self.places: dict[int, list[Place]] = {}
        self._names = self.read.every - _NOT_READ
        self._known: dict[int, Any] = {id(file): file for file, _ in executed.names_in_modules()}
        for name, module in modules:
            self._add(f"model.{name}" if name else "model", module)
        self._add("method", method, everything=True)
        for item in fixed:
            self._add(getattr(item, "__qualname__", "a further argument"), item)
        for values, names in executed.names_in_globals():
            path = str(values.get("__name__"))
            if names is not None and is_of_packages(path):
                # Numbers are torch's own state, such as whether parametrised weights are cached.
                numbers = {name for name in names if type(values[name]) in _NUMBERS}
                names = numbers if path.startswith("torch.") else set()
            if names is None:
                self._note(path, values, _not_pythons)
            elif names:
                self._note(path, values, functools.partial(some_of, names))
        for file, names in executed.names_in_modules():
            path, reads = file.__name__, functools.partial(some_of, names)
            self._note(path, vars(file), reads, within=not is_of_packages(path))
        if executed.variables:
            self._note("os.environ", os.environ, functools.partial(some_of, executed.variables))

    def _add(self, path: str, item: Any, *, everything: bool = False) -> None:
        """Records an object and what it holds."""
        if type(item) in ATOMS or isinstance(item, Tensor) or id(item) in self._known:
            return
        self._known[id(item)] = item  # also keeps it, so that no other gets its identity
        if isinstance(item, ModuleType):
            if not is_of_packages(item.__name__):
                self._note(path, vars(item), functools.partial(some_of, self.read.own))
        elif isinstance(item, np.ndarray):
            self.arrays.append((path, item, form_of_array(item)))
            for one in item.flat if item.dtype.hasobject else ():
                self._add(f"an entry of {path}", one)
            if type(item) is not np.ndarray:
                self._add_object(path, item, everything=everything)
        elif isinstance(item, (np.random.Generator, np.random.RandomState)):
            self.generators.append((path, item, pickle.dumps(item)))
        elif isinstance(item, nn.Module):
            names = self._names_of(item)
            names = None if names is None else names | _MODULES
            self._note(path, item, functools.partial(attributes_of, names=names, but=_NOT_READ))
            self._add_class(type(item))
        elif isinstance(item, type):
            if not _is_of_packages(item):
                del self._known[id(item)]
                self._add_class(item)
        elif isinstance(item, FunctionType):
            if not _is_of_packages(item):
                self._note(path, item, parts_of_function)
                self._note(path, vars(item), functools.partial(some_of, self._names))
        elif not isinstance(item, _CODE):
            self._add_object(path, item, everything=everything)

    def _add_object(self, path: str, item: Any, *, everything: bool) -> None:
        kind: Any = type(item)
        if (
            isinstance(item, Iterator)
            and kind.__flags__ & _IMMUTABLE
            and not isinstance(item, io.IOBase)
        ):
            raise CaptureError(
                f"{path} is an iterator of Python's ({kind.__name__}), and the model may read it: "
                "a captured call would not see it move on. Keep a number instead."
            )
        if (numbers := bytes_of(item)) is not None:
            self.bytes.append((path, item, numbers))
        plain = type(item) in PLAIN and not getattr(item, "__dict__", None)
        if plain and not item and not isinstance(item, tuple):
            self.empty.append((path, item))
        elif (read := reader_of(item)) is not None:
            self._note(path, item, read)
        elif not has_attributes(item):  # of Python's own, such as a bound method of a dictionary
            for one in gc.get_referents(item):
                self._add(f"what {path} holds", one)
        for member in item if isinstance(item, (dict, set, frozenset)) else ():
            self._add(f"a key of {path}", member)
        if not plain and has_attributes(item):
            names = None if everything else self._names_of(item)
            self.objects.append(item)
            self._note(path, item, functools.partial(attributes_of, names=names))
            self._add_class(type(item))

    def _names_of(self, item: Any) -> frozenset[str] | None:
        """Returns the attributes of an object that may be read, or None for all of them."""
        kind = type(item)
        if _is_of_packages(kind):
            if isinstance(item, nn.Module):
                return self._names
            files = (base.__module__ for base in kind.__mro__)
            return self.read.own.union(*(self.read.within.get(file, ()) for file in files))
        forwards = any(vars(base).keys() & FORWARDS for base in kind.__mro__[:-1])
        if kind.__module__ in self.read.by_dict or (forwards and not isinstance(item, nn.Module)):
            return None
        if self.read.matches:
            return self._names.union(getattr(kind, "__match_args__", ()))
        return self._names

    def _add_class(self, kind: type) -> None:
        if not _is_of_packages(type(kind)):
            self._add_class(type(kind))
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
        number = len(self.holders)
        self.holders.append(holder)
        for place, value in enumerate(holder.values):
            if isinstance(value, Tensor):
                self.places.setdefault(id(value), []).append(Place(number, place))
                self._add_tensor(holder, place)
            elif within:
                self._add(holder.name(place), value)

    def _add_tensor(self, holder: Holder, place: int) -> None:
        path, tensor = holder.name(place), holder.values[place]
        if holds_tensors(tensor):
            # What the tensor at this place holds, also if it is replaced by another one.
            inner = functools.partial(_inner_at, holder, place)
            self._note(path, inner, _called)
        else:
            for name, value in some_of(self.read.own, vars(tensor)).items():
                self._add(f"{path}.{name}", value)


def _not_pythons(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith("__")}


def _inner_at(holder: Holder, place: int) -> dict[str, Any]:
    return inner_of(holder.values[place])


def _called(function: Callable[[], Any]) -> Any:
    return function()


def _is_of_packages(item: Any) -> bool:
    """Returns whether a class or function is Python's or torch's own, which doesn't change."""
    return is_of_packages(getattr(item, "__module__", ""))
