"""Numbers that a model reads of objects of any kind: a captured call sees them change."""

import array
import collections
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttnLRP
from captum_transformer.errors import CaptureMismatchError
from tests.captured.models import Block, assert_same, classifier, values


class Own:
    def __init__(self) -> None:
        self.scale = 2.0


class OfDict(dict[str, float]):
    pass


class OfList(list[float]):
    pass


class OfTuple(tuple[float, ...]):
    pass


class OfFloat(float):
    pass


class Makes(collections.OrderedDict[str, Any]):
    """Makes an object anew whenever it is read, as the activations of Transformers."""

    def __getitem__(self, key: str) -> Any:
        made = Own()
        made.scale = super().__getitem__(key) * self.factor
        return made

    factor = 1.0


def makes() -> Makes:
    made = Makes(a=1.0)
    made.factor = 2.0
    return made


class Kind(type):
    scale = 2.0


class OfKind(metaclass=Kind):
    pass


class Describes:
    """The value of an attribute of others."""

    def __init__(self) -> None:
        self.scale = 2.0

    def __get__(self, _: Any, kind: Any) -> float:
        return self.scale


class Described:
    thick = Describes()


class Wide:
    scale = 2.0


class Narrow:
    scale = 3.0


class Either(Wide):
    pass


class Held(NamedTuple):
    """An object, how a model reads a number of it, and what sets that number."""

    make: Callable[[], Any]
    read: Callable[[Any], Any]
    change: Callable[[Any, float], Any]


def scale_of(item: Any) -> Any:
    return item.scale


def set_scale(item: Any, value: float) -> None:
    item.scale = value


def with_scale(item: Any) -> Any:
    item.scale = 2.0
    return item


def set_first(item: Any, value: float) -> None:
    item[0] = value


def set_a(item: Any, value: float) -> None:
    item["a"] = value


def reorder(item: dict[str, float], value: float) -> None:
    first = "a" if value == 2.0 else "b"
    both = {"a": 2.0, "b": 3.0}
    item.clear()
    item.update({first: both.pop(first), **both})


def two() -> float:
    return 2.0


NUMBERS = {"a": 2.0}

HELD: dict[str, Held] = {
    "an attribute of a dictionary": Held(lambda: with_scale(OfDict()), scale_of, set_scale),
    "an attribute of a list": Held(lambda: with_scale(OfList([1.0])), scale_of, set_scale),
    "an attribute of a tuple": Held(lambda: with_scale(OfTuple([1.0])), scale_of, set_scale),
    "an attribute of a number": Held(lambda: with_scale(OfFloat(1.0)), scale_of, set_scale),
    "what an item is made of": Held(
        makes, lambda o: o["a"].scale, lambda o, v: setattr(o, "factor", v)
    ),
    "an item of Python's dictionary class": Held(
        lambda: collections.UserDict(a=2.0), lambda o: o["a"], set_a
    ),
    "an item of several dictionaries": Held(
        lambda: collections.ChainMap({}, {"a": 2.0}),
        lambda o: o["a"],
        lambda o, v: set_a(o.maps[1], v),
    ),
    "what is made if it is missing": Held(
        lambda: collections.defaultdict(two),
        lambda o: o["b"],
        lambda o, v: setattr(o, "default_factory", two if v == 2 else int),
    ),
    "what is shown by a view": Held(
        lambda: types.MappingProxyType(NUMBERS), lambda o: o["a"], lambda _, v: set_a(NUMBERS, v)
    ),
    "an array of numbers": Held(lambda: array.array("d", [2.0]), lambda o: o[0], set_first),
    "bytes": Held(lambda: bytearray([2]), lambda o: o[0], lambda o, v: set_first(o, int(v))),
    "the sign of zero in an array": Held(
        lambda: np.zeros(1), lambda o: 3.0 if np.signbit(o[0]) else 2.0,
        lambda o, v: set_first(o, 0.0 if v == 2 else -0.0),
    ),
    "how an array is read": Held(
        lambda: np.zeros(8, np.uint8), lambda o: 2.0 * o.itemsize,
        lambda o, v: setattr(o, "dtype", np.uint8 if v == 2 else np.uint16),
    ),
    "the mask of an array": Held(
        lambda: np.ma.masked_array([2.0, 1.0], mask=[False, True]), lambda o: float(o.sum()),
        lambda o, v: o.mask.__setitem__(1, v == 2),
    ),
    "an object in an array": Held(
        lambda: np.array([Own()]), lambda o: o[0].scale, lambda o, v: set_scale(o[0], v)
    ),
    "what a weak reference shows": Held(
        lambda: weakref.ref(Wide), lambda o: o().scale, lambda _, v: set_scale(Wide, v)
    ),
    "a method of a dictionary": Held(
        lambda: NUMBERS.get, lambda o: o("a"), lambda _, v: set_a(NUMBERS, v)
    ),
    "an attribute of a class's class": Held(
        lambda: OfKind, scale_of, lambda _, v: set_scale(Kind, v)
    ),
    "an attribute that an object describes": Held(
        Described, lambda o: o.thick, lambda _, v: set_scale(vars(Described)["thick"], v)
    ),
    "another base": Held(
        Either, scale_of, lambda _, v: setattr(Either, "__bases__", (Wide if v == 2 else Narrow,))
    ),
    "an attribute of a parameter": Held(
        lambda: with_scale(nn.Parameter(torch.ones(16))), scale_of, set_scale
    ),
    "an attribute that a tensor gets": Held(
        lambda: torch.ones(16),
        lambda o: getattr(o, "width", 2.0),
        lambda o, v: setattr(o, "width", v) if v != 2 else delattr(o, "width"),
    ),
    "a key": Held(
        lambda: {Own(): 1}, lambda o: next(iter(o)).scale, lambda o, v: set_scale(next(iter(o)), v)
    ),
    "a member of a set": Held(
        lambda: {Own()}, lambda o: next(iter(o)).scale, lambda o, v: set_scale(next(iter(o)), v)
    ),
    "the members of a set": Held(
        lambda: {2.0}, lambda o: next(iter(o)), lambda o, v: (o.clear(), o.add(v))
    ),
    "a member of a frozen set": Held(
        lambda: [frozenset({2.0})], lambda o: min(o[0]), lambda o, v: set_first(o, frozenset({v}))
    ),
    "the order of a dictionary": Held(
        lambda: {"a": 2.0, "b": 3.0}, lambda o: next(iter(o.values())), reorder
    ),
    "the sign of zero": Held(
        lambda: [0.0], lambda o: 2.0 if str(o[0]) == "0.0" else 3.0,
        lambda o, v: set_first(o, 0.0 if v == 2 else -0.0),
    ),
    "a number of a file": Held(
        lambda: with_scale(types.ModuleType("a_file")), scale_of, set_scale
    ),
}  # fmt: skip


class Reads(Block):
    def __init__(self) -> None:
        super().__init__()
        self.held = {name: held.make() for name, held in HELD.items()}

    def forward(self, x: Tensor) -> Tensor:
        for name, held in self.held.items():
            x = x * (HELD[name].read(held) / 2)
        return super().forward(x)


def test_a_number_of_an_object_of_any_kind() -> None:
    model = classifier(Reads, blocks=2)
    method = AttnLRP(model)
    expected = method.attribute(values(1), [2] * 3)
    captured = method.capture(values(), 1)
    seen = {}
    for name, held in HELD.items():
        item = model.blocks[1].held[name]
        assert_same(captured(values(1), 2), expected)
        held.change(item, 3.0)
        assert not torch.equal(method.attribute(values(1), [2] * 3), expected), name
        try:
            captured(values(1), 2)
        except CaptureMismatchError:
            seen[name] = True
        held.change(item, 2.0)
    assert seen == dict.fromkeys(HELD, True)


def test_a_further_argument_of_another_sign() -> None:
    model = classifier()
    method = AttnLRP(lambda x, zero: model(x * (2.0 if str(zero) == "0.0" else 3.0)))
    captured = method.capture(values(), 1, (0.0,))
    captured(values(1), 2, (0.0,))
    with pytest.raises(CaptureMismatchError, match="further arguments"):
        captured(values(1), 2, (-0.0,))
