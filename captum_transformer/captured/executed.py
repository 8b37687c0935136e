"""Which code a call runs, and so which names it may read."""

import dis
import gc
import linecache
import os
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import captum
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import captum_transformer

_OWN, *_BELOW = (
    str(Path(package.__file__ or "").parent) + os.sep
    for package in (captum_transformer, torch, captum)
)
_PATHS = sysconfig.get_paths()
_STANDARD = tuple(_PATHS[name] + os.sep for name in ("stdlib", "platstdlib"))
# These may lie within the standard library's folder.
_INSTALLED = tuple(_PATHS[name] + os.sep for name in ("purelib", "platlib"))
_PUT_BACK = frozenset({"getstate", "setstate"})
_READS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_SUPER_ATTR"})
_NAME = re.compile(r"[A-Za-z_]\w*")


class Executed:
    """What has run.

    Attributes:
        codes: the code, with the globals that it reads.
        modules: the modules that were called.
        random: where numbers were drawn from a generator of Python's.
    """

    def __init__(self) -> None:
        self.codes: dict[CodeType, dict[str, Any]] = {}
        self.modules: dict[int, nn.Module] = {}
        self.random: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Meanwhile it is written down what this thread runs, but for this library."""
        earlier = sys.getprofile()
        hook = register_module_forward_pre_hook(self._called)
        sys.setprofile(self._ran)
        try:
            yield
        finally:
            sys.setprofile(earlier)
            hook.remove()

    def _ran(self, frame: FrameType, event: str, function: Any) -> None:
        code = frame.f_code
        if event == "c_call":
            owner = getattr(function, "__self__", None)
            if isinstance(owner, random.Random) and function.__name__ not in _PUT_BACK:
                self.random.append(line_of(frame))
        elif event == "call" and code not in self.codes and not code.co_filename.startswith(_OWN):
            self.codes[code] = frame.f_globals

    def _called(self, module: nn.Module, _: Any) -> None:
        self.modules[id(module)] = module

    @property
    def names(self) -> frozenset[str]:
        """All that the code may read of objects, also by `getattr` and a name that it spells."""
        found: set[str] = set()
        for code in self.codes:
            found |= _names_in(code)
        return frozenset(found)

    def names_in_globals(self) -> Iterator[tuple[dict[str, Any], set[str]]]:
        """What the code reads of each file's globals."""
        found: dict[int, tuple[dict[str, Any], set[str]]] = {}
        for code, values in self.codes.items():
            found.setdefault(id(values), (values, set()))[1].update(_names_in(code) & values.keys())
        yield from found.values()


def line_of(frame: FrameType) -> str:
    """The line that a frame runs, or the first one around it that is the model's."""
    while frame.f_back is not None and not _may_be_models(frame.f_code.co_filename):
        frame = frame.f_back
    path, number = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(path, number).strip()
    return f"{path}:{number} in {frame.f_code.co_name}: `{text}`"


def _may_be_models(path: str) -> bool:
    """Whether a file is none of this library, torch, Captum or Python."""
    standard = path.startswith(_STANDARD) and not path.startswith(_INSTALLED)
    return not standard and not path.startswith((_OWN, *_BELOW))


@contextmanager
def uncollected() -> Iterator[None]:
    """Meanwhile garbage in cycles stays: what it runs when it goes would count as the model's.

    >>> with uncollected():
    ...     gc.isenabled()
    False
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _names_in(code: CodeType) -> set[str]:
    # What is only written, such as the last output that a module keeps, is not read.
    steps = dis.get_instructions(code)
    found = {step.argval for step in steps if step.opname in _READS}
    pending = list(code.co_consts)
    for constant in pending:
        if isinstance(constant, str) and _NAME.fullmatch(constant):
            found.add(constant)
        elif isinstance(constant, (tuple, frozenset)):
            pending += constant
        elif isinstance(constant, CodeType):
            found |= _names_in(constant)
    return found
