"""Whatever of Python's a model reads, and wherever that is held, a captured call sees it change."""

import argparse
import functools
import operator
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttnLRP
from captum_transformer.errors import CaptureMismatchError
from tests.captured import other_file
from tests.captured.models import Block, assert_never_stale, assert_same, classifier, values

VARIABLE: ContextVar[float] = ContextVar("VARIABLE", default=1.0)
LOCAL = threading.local()


class Renames:
    """Has attributes by other names than it is asked for, as the configurations of Transformers."""

    def __init__(self) -> None:
        self.n_scale = 1.0

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, "n_scale" if name == "scale" else name)


class Wraps:
    """Has the attributes of what it holds."""

    def __init__(self) -> None:
        self._held = {"thickness": 1.0}

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["_held"][name]


@dataclass
class Pair:
    first: float = 1.0
    second: float = 1.0


def _doubled(x: Tensor, args: float = 1.0) -> Tensor:
    return x * args * _doubled.factor  # type: ignore[attr-defined]


_doubled.factor = 1.0  # type: ignore[attr-defined]


class Reads(Block):
    def __init__(self) -> None:
        super().__init__()
        self.factor_0, self.kind, self.own_factor = 1.0, "own", 1.0
        self.space, self.arguments = SimpleNamespace(width=1.0), argparse.Namespace(depth=1.0)
        self.renames, self.wraps = Renames(), Wraps()
        self.pair, self.numbers = Pair(), [1.0]
        self.partial = functools.partial(self.times, self.numbers, args=1.0)

    @staticmethod
    def times(numbers: list[float], x: Tensor, args: float) -> Tensor:
        return x * numbers[0] * args

    def forward(self, x: Tensor) -> Tensor:
        number = 0
        factors = [
            other_file.SCALE,
            other_file.OPTIONS["scale"],
            other_file.Settings.scale,
            other_file.doubled() / 2,
            float(os.environ["CAPTURED_SCALE"]),
            VARIABLE.get(),
            LOCAL.scale,
            getattr(self, f"factor_{number}"),
            getattr(self, f"{self.kind}_factor"),
            self.space.width,
            self.arguments.depth,
            self.renames.scale,
            self.wraps.thickness,
        ]
        match self.pair:
            case Pair(_, taken):
                factors.append(taken)
        for factor in factors:
            x = x * factor
        x = self.partial(_doubled(x))
        return super().forward(x)


def _set(name: str) -> Callable[[Any, float], None]:
    """Sets what a dotted name says of a block."""
    path, _, last = name.rpartition(".")
    owner = operator.attrgetter(path) if path else lambda block: block
    return lambda block, value: setattr(owner(block), last, value)


CHANGES: dict[str, Callable[[Any, float], Any]] = {
    "another file's number": lambda _, value: setattr(other_file, "SCALE", value),
    "another file's options": lambda _, value: other_file.OPTIONS.update(scale=value),
    "another file's class": lambda _, value: setattr(other_file.Settings, "scale", value),
    "the environment": lambda _, value: os.environ.__setitem__("CAPTURED_SCALE", str(value)),
    "a context variable": lambda _, value: VARIABLE.set(value),
    "a variable of this thread": lambda _, value: setattr(LOCAL, "scale", value),
    "a name put together": _set("factor_0"),
    "a name that is held": _set("own_factor"),
    "a namespace": _set("space.width"),
    "parsed arguments": _set("arguments.depth"),
    "a name for another": _set("renames.n_scale"),
    "an attribute that a pattern takes by its place": _set("pair.second"),
    "an attribute of a function": lambda _, value: setattr(_doubled, "factor", value),
    "an argument of a partial function": lambda block, value: block.numbers.__setitem__(0, value),
    "what is wrapped": lambda block, value: block.wraps._held.update(thickness=value),
}


def test_a_number_that_python_holds_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTURED_SCALE", "1.0")
    LOCAL.scale = 1.0
    VARIABLE.set(1.0)
    model = classifier(Reads, blocks=2)
    method, asks = AttnLRP(model), (getattr, hasattr)
    captured = method.capture(values(), 1)
    assert (getattr, hasattr) == asks
    expected = method.attribute(values(1), [2] * 3)
    seen = {}
    for name, change in CHANGES.items():
        change(model.blocks[1], 2.0)
        try:
            captured(values(1), 2)
        except CaptureMismatchError:
            seen[name] = True
        change(model.blocks[1], 1.0)
        assert_same(captured(values(1), 2), expected)
    assert seen == dict.fromkeys(CHANGES, True)


class TakesFromItsDict(Block):
    def __init__(self) -> None:
        super().__init__()
        self.factor_0 = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * vars(self)["_".join(("factor", "0"))])


def test_attributes_that_are_taken_from_all() -> None:
    model = classifier(TakesFromItsDict)
    captured = AttnLRP(model).capture(values(), 1)
    captured(values(1), 2)
    model.blocks[0].factor_0 = 2.0
    with pytest.raises(CaptureMismatchError, match=r"blocks\.0\.factor_0"):
        captured(values(1), 2)


class TakesFromGlobals(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * globals().get("_".join(("FACTOR", "0")), 1.0))


def test_globals_that_are_taken_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = AttnLRP(classifier(TakesFromGlobals)).capture(values(), 1)
    captured(values(1), 2)
    monkeypatch.setitem(TakesFromGlobals.forward.__globals__, "FACTOR_0", 2.0)
    with pytest.raises(CaptureMismatchError, match="FACTOR_0"):
        captured(values(1), 2)


class TimesHeld:
    """Functions that further arguments may be, with a number that they read."""

    factor = 1.0

    def method(self, x: Tensor) -> Tensor:
        return x * self.factor

    def __init__(self) -> None:
        def closure(x: Tensor) -> Tensor:
            return x * self.factor

        self.closure = closure


@pytest.mark.parametrize("kind", ["method", "closure"])
def test_functions_that_are_further_arguments(kind: str) -> None:
    model, held = classifier(), TimesHeld()
    function = getattr(held, kind)
    method = AttnLRP(lambda x, function: model(function(x)))
    captured = method.capture(values(), 1, (function,))
    captured(values(1), 2, (function,))
    held.factor = 2.0
    with pytest.raises(CaptureMismatchError, match="factor"):
        captured(values(1), 2, (function,))


class Remembers(Block):
    """Computes something from a weight once, and again when it finds that the weight has changed.

    It finds so in one of several ways.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.known = how, None
        self.doubled: Tensor | None = None
        self.weight = nn.Parameter(torch.ones(16))

    def now(self) -> Any:
        match self.how:
            case "object":
                return self.weight
            case "id":
                return id(self.weight)
            case "version":
                return self.weight._version
            case _:
                return self.weight.data_ptr()

    def forward(self, x: Tensor) -> Tensor:
        if self.known is not (now := self.now()) and (self.how == "object" or self.known != now):
            self.known, self.doubled = now, (2 * self.weight).detach()
        return super().forward(x * self.doubled)


@pytest.mark.parametrize("how", ["object", "id", "version", "data_ptr"])
def test_what_was_computed_from_earlier_weights(how: str) -> None:
    model = classifier()
    model.blocks[0] = block = Remembers(how)
    model.eval()(values())
    method = AttnLRP(model)
    captured = method.capture(values(), 1)
    assert not assert_never_stale(method, captured, values(1), 2)
    with torch.no_grad():
        if how == "version":
            block.weight.mul_(3)
        else:
            block.weight = nn.Parameter(torch.full((16,), 3.0))
    assert assert_never_stale(method, captured, values(1), 2)


def test_annotations_that_somebody_asks_for() -> None:
    class Plain(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.__annotations__ is not None else x

    model = classifier(Plain)
    captured = AttnLRP(model).capture(values(), 1)
    expected = captured(values(1), 2)
    assert [kind.__annotations__ for kind in (Plain, Block)]
    assert_same(captured(values(1), 2), expected)


@pytest.mark.parametrize(
    "register",
    [
        torch.nn.modules.module.register_module_full_backward_hook,
        torch.nn.modules.module.register_module_full_backward_pre_hook,
        torch.nn.modules.module.register_module_forward_hook,
    ],
)
def test_hooks_of_all_modules(register: Any) -> None:
    captured = AttnLRP(classifier()).capture(values(), 1)
    handle = register(lambda *_: None)
    try:
        with pytest.raises(CaptureMismatchError, match="the hooks of all modules"):
            captured(values(1), 2)
    finally:
        handle.remove()
    captured(values(1), 2)


def test_calls_are_captured_in_several_threads() -> None:
    asks, method = (getattr, hasattr), AttnLRP(classifier())
    with ThreadPoolExecutor(3) as pool:
        every = list(pool.map(lambda seed: method.capture(values(seed), 1), range(3)))
        found = list(pool.map(lambda captured: captured(values(1), 2), every))
    assert (getattr, hasattr) == asks
    for maps in found:
        assert_same(maps, method.attribute(values(1), [2] * 3))
