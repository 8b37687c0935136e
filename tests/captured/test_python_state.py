"""Whatever of Python's a model reads, and wherever that is held, a captured call sees it change."""

import argparse
import operator
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from captum_transformer import AttnLRP
from captum_transformer.errors import CaptureMismatchError
from tests.captured import other_file
from tests.captured.models import Block, assert_same, classifier, values

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


class Reads(Block):
    def __init__(self) -> None:
        super().__init__()
        self.factor_0, self.kind, self.own_factor = 1.0, "own", 1.0
        self.space, self.arguments = SimpleNamespace(width=1.0), argparse.Namespace(depth=1.0)
        self.renames, self.wraps = Renames(), Wraps()

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
        for factor in factors:
            x = x * factor
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
    "what is wrapped": lambda block, value: block.wraps._held.update(thickness=value),
}


def test_a_number_that_python_holds_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTURED_SCALE", "1.0")
    LOCAL.scale = 1.0
    VARIABLE.set(1.0)
    model = classifier(Reads)
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
