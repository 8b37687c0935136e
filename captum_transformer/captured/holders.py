"""What objects hold now, compared with what they held when recorded."""

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import FunctionType, MappingProxyType
from typing import Any

from torch import nn

from captum_transformer.captured.contents import OF_MODULES

# Their items are taken as they are; other mappings may make them whenever they are asked.
_MAPPINGS = (dict, OrderedDict, MappingProxyType)


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
        own = owner if type(owner) in _MAPPINGS else getattr(owner, "__dict__", None)
        self.own = own if own is not None and own.keys() >= held.keys() else None

    def now(self) -> list[Any] | None:
        """Returns what it holds now, or None if the keys have changed."""
        held = self._read(self.owner)
        return list(held.values()) if list(held) == self.keys else None

    def difference(self) -> str:
        """Describes which keys are new or missing."""
        held = self._read(self.owner)
        new = [key for key in held if key not in self.keys]
        missing = [key for key in self.keys if key not in held]
        if not new and not missing:
            return f"{self.path} has the same keys in another order"
        return f"{self.path} has {f'new {new}' if new else f'no {missing} any more'}"

    def name(self, number: int) -> str:
        """Returns the name that a user would use for one of the values."""
        key = self.keys[number]
        joint = f".{key}" if isinstance(key, str) else f"[{key!r}]"
        for plain in ("._parameters", "._buffers", "._modules"):
            if self.path.endswith(plain):
                return f"{self.path.removesuffix(plain)}{joint}"
        return f"{self.path}{joint}"


class Together:
    """Compares what many objects hold at once, which takes less time than one by one.

    Args:
        holders: the contents of the objects.
        empty: the containers that were empty.

    Attributes:
        others: the holders that have to be compared one by one.
    """

    def __init__(self, holders: Iterable[Holder], empty: Iterable[Any]) -> None:
        self.others: list[Holder] = []
        self._own: list[Mapping[Any, Any]] = []
        self._reads: list[tuple[Callable[[Any], Iterable[Any]], Any]] = []
        self._blanks: list[tuple[Callable[[Any], Iterable[Any]], Any]] = []
        blank = set[int]()
        for holder in holders:
            if type(holder.owner) in (tuple, frozenset):
                continue  # which can't change
            if type(holder.owner) is FunctionType and not holder.owner.__closure__:
                self._reads.append((operator.attrgetter(*holder.keys), holder.owner))
            elif holder.own is None:
                self.others.append(holder)
            else:
                self._own.append(holder.own)
                pairs = list(zip(holder.keys, holder.values, strict=True))
                if isinstance(holder.owner, nn.Module):
                    # Another empty container in place of one is the same to the module.
                    empties = [
                        k for k, v in pairs if k in OF_MODULES and isinstance(v, dict) and not v
                    ]
                    blank |= {id(holder.own[key]) for key in empties}
                    pairs = [(key, value) for key, value in pairs if key not in empties]
                    self._blanks += _reading(empties, holder.own)
                kind = type(holder.own)
                if holder.own is holder.owner and len(holder.own) == len(pairs):  # and their order
                    self._reads += [(kind.keys, holder.own), (kind.values, holder.own)]
                else:
                    self._reads += _reading([key for key, _ in pairs], holder.own)
        self._empty = [one for one in empty if id(one) not in blank]
        self.accept()

    def is_unchanged(self) -> bool:
        """Returns whether all but the others hold the same objects."""
        try:
            if list(map(len, self._own)) != self._sizes:
                return False
            return not (
                any(chain.from_iterable([read(own) for read, own in self._blanks]))
                or any(map(operator.is_not, self._now(), self._values))
                or any(self._empty)
            )
        except KeyError:
            return False

    def accept(self) -> None:
        """Takes what the objects hold now as what they have to hold."""
        self._sizes = list(map(len, self._own))
        self._values = list(self._now())

    def _now(self) -> Iterator[Any]:
        return chain.from_iterable([read(own) for read, own in self._reads])


def _reading(keys: Sequence[Any], own: Any) -> list[tuple[Callable[[Any], Iterable[Any]], Any]]:
    # Of a single key, it would return no sequence.
    twice = keys if len(keys) > 1 else [*keys, *keys]
    return [(operator.itemgetter(*twice), own)] if keys else []
