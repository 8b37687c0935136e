"""Checks that all that a model reads besides its inputs is the same as when a call was captured.

Tensors may be replaced by others of the same shapes: they are read again for each call of the
graph, from the places where they were found. Everything else has to be the same.
"""

import operator
import pickle
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer.captured.arguments import Shape
from captum_transformer.captured.contents import (
    METADATA,
    bytes_of,
    form_of_array,
    has_attributes,
    identity_of,
    metadata_of,
    some_of,
)
from captum_transformer.captured.executed import ALONE, Executed
from captum_transformer.captured.gathered import ATOMS, Gathered, Place
from captum_transformer.captured.holders import Together
from captum_transformer.captured.settings import settings


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
        self._gathered = Gathered(method, modules, executed, fixed)
        self._holders = self._gathered.holders
        self._identifies = self._gathered.read.identities
        self.metadata_of: list[Any] = []
        self._watched: dict[str, list[Place]] = {}
        self._identities: dict[Place, list[Any]] = {}
        self._classes = list(map(_class_of, self._gathered.objects))

    def places(self, tensor: Tensor) -> list[str]:
        """Returns the names under which a tensor is held."""
        return [self._holders[h].name(n) for h, n in self._gathered.places.get(id(tensor), ())]

    def watch(self, state: Mapping[str, Tensor]) -> None:
        """Sets the tensors that are read for each call."""
        every = self._gathered.places
        self._watched = {name: every[id(tensor)] for name, tensor in state.items()}
        # Also those that the graph doesn't read: code may ask whether two are the same.
        self._several = [places for places in every.values() if len(places) > 1]
        firsts = [place for (place, *_) in every.values()]
        if self._identifies:
            self._identities = {place: self._identity(place) for place in firsts}
        self._firsts, self._marks = firsts, list(map(self._marks_at, firsts))
        every.clear()
        self.metadata_of = metadata_of(list(state.values()))
        empty = [container for _, container in self._gathered.empty]
        self._together = Together(self._holders, empty)

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
        if list(map(_class_of, self._gathered.objects)) != self._classes:
            return "a module or object has another class, as with a new parametrisation"
        same = self._together.is_unchanged()
        if not same and (path := next((p for p, held in self._gathered.empty if held), None)):
            return f"{path} is no longer empty"
        for holder in self._together.others if same else self._holders:
            held = holder.now()
            if held is None:
                return holder.difference()
            if not all(map(operator.is_, held, holder.values)):
                for place, (new, old) in enumerate(zip(held, holder.values, strict=True)):
                    if not _is_same(new, old):
                        return f"{holder.name(place)} is {_in_place_of(new, old)}"
                holder.values = held
        if not same:
            self._together.accept()
        for path, array, form in self._gathered.arrays:
            if form_of_array(array) != form:
                return f"the array {path} holds other numbers"
        for path, held, numbers in self._gathered.bytes:
            if bytes_of(held) != numbers:
                return f"{path} holds other bytes"
        for places in self._several:
            one, *others = (self._holders[h].values[n] for h, n in places)
            if any(other is not one for other in others):
                return f"{self._names(places)} were one tensor, and are several"
        known: dict[int, Place] = {}
        for where in self._firsts:
            earlier = known.setdefault(id(self._holders[where.holder].values[where.number]), where)
            if earlier is not where:
                return f"{self._names([earlier, where])} were several tensors, and are one"
        for where, identity in self._identities.items():
            if self._identity(where) != identity:
                name = self._holders[where.holder].name(where.number)
                return f"{name} is another tensor or was written into, and the model may ask for it"
        for where, marks in zip(self._firsts, self._marks, strict=True):
            now = self._marks_at(where)
            if now.keys() != marks.keys() or not all(_is_same(now[key], marks[key]) for key in now):
                name = self._holders[where.holder].name(where.number)
                return f"the tensor {name} has other attributes of its own"
        metadata = metadata_of(self.state())
        if metadata != self.metadata_of:
            changes = zip(self._watched.values(), metadata, self.metadata_of, strict=True)
            (first, *_), new, old = next(c for c in changes if c[1] != c[2])
            name = self._holders[first.holder].name(first.number)
            what, now, before = next(
                c for c in zip(METADATA, new, old, strict=True) if c[1] != c[2]
            )
            return f"{what} of {name} is {now}, and was {before}"
        return None

    def drawn(self) -> str | None:
        """Returns the name of a generator of NumPy that has been drawn from, if there is one."""
        drawn = (
            path for path, one, state in self._gathered.generators if pickle.dumps(one) != state
        )
        return next(drawn, None)

    def state(self) -> list[Tensor]:
        """Returns the tensors that the graph reads; call `changed` first."""
        return [self._holders[h].values[n] for ((h, n), *_) in self._watched.values()]

    def state_names(self) -> list[str]:
        """Returns the names of these tensors in the model."""
        places = (places[0] for places in self._watched.values())
        names = (self._holders[holder].name(number) for holder, number in places)
        return [name.removeprefix("model.") for name in names]

    def _names(self, places: Sequence[Place]) -> str:
        return " and ".join(self._holders[h].name(n) for h, n in places)

    def _marks_at(self, place: Place) -> Mapping[str, Any]:
        """Returns what Python has noted on the tensor at a place, such as `weight.scale = 2.0`."""
        held = vars(self._holders[place.holder].values[place.number])
        return some_of(self._gathered.read.own, held) if held else {}

    def _identity(self, place: Place) -> list[Any]:
        """Returns what code may tell the tensor at a place from others by."""
        tensor = self._holders[place.holder].values[place.number]
        return [identity_of(tensor, by) for by in self._identifies]


def _class_of(item: Any) -> tuple[type, ...]:
    return type(item).__mro__


def _is_same(new: Any, old: Any) -> bool:
    """Returns whether a value may take the place of the recorded one."""
    if new is old:
        return True
    if type(new) is not type(old):
        return False
    if isinstance(new, Tensor):
        strided = new.layout is old.layout is torch.strided
        return strided and Shape.of(new) == Shape.of(old)
    if isinstance(new, MethodType):
        return bool(new == old)
    if isinstance(new, (float, complex)):  # zero may have a sign
        return _is_value(new) and repr(new) == repr(old)
    if isinstance(new, frozenset) and set(map(id, new)) == set(map(id, old)):
        return True
    return _is_value(new) and bool(new == old)


def _is_value(item: Any) -> bool:
    """Returns whether nothing can be read of an item that equal ones don't have."""
    if type(item) in (tuple, frozenset):
        return all(map(_is_value, item))
    return isinstance(item, ATOMS) and not has_attributes(item)


def _in_place_of(new: Any, old: Any) -> str:
    texts = _short(new), _short(old)
    if texts[0] == texts[1]:  # of objects, only the class is shown
        return f"another {type(new).__name__}"
    return f"{texts[0]}, and was {texts[1]}"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        dense = value.layout is torch.strided
        return f"a {type(value).__name__} {Shape.of(value) if dense else value.layout}"
    text = repr(value) if isinstance(value, ATOMS) else f"a {type(value).__name__}"
    return text if len(text) < 80 else text[:77] + "..."
