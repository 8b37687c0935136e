"""Which code a call runs, and therefore which names it may read."""

import builtins
import dis
import functools
import gc
import linecache
import os
import random
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock, get_ident
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple

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
_IMPORTS, _IMPORT = "<frozen importlib._bootstrap>", "_find_and_load"
_PUT_BACK = frozenset({"getstate", "setstate"})
_ASKS = ("getattr", "hasattr")
_BY_DICT = frozenset({"__dict__", "vars", "attrgetter", "__getattribute__"})
# The callers of these have named the attribute.
FORWARDS = frozenset({"__getattr__", "__getattribute__"})
_READS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_SUPER_ATTR"})
# These tell tensors with the same numbers apart.
IDENTITIES = frozenset({"id", "data_ptr", "_version"})
# How each environment variable is read.
_ENVIRON = type(os.environ).__getitem__.__code__
_NAME = re.compile(r"[A-Za-z_]\w*")


def is_of_packages(name: Any) -> bool:
    """Returns whether a module is Python's, torch's or this library's, by its name."""
    root = str(name).partition(".")[0]
    return root in sys.stdlib_module_names or root in ("torch", "captum_transformer")


# While a call is captured, functions of Python and of torch are replaced, for all threads: nobody
# else captures one, or compares such functions with what they were.
ALONE = RLock()


class Executed:
    """Records the code that has run.

    Attributes:
        codes: the code by its identity, with the globals that it reads.
        modules: the modules that were called.
        random: the lines where numbers were drawn from one of Python's generators.
        asked: the names of attributes that were given to `getattr` and `hasattr`.
        variables: the environment variables that were read.
    """

    def __init__(self) -> None:
        self.codes: dict[int, tuple[CodeType, dict[str, Any]]] = {}
        self.modules: dict[int, nn.Module] = {}
        self.random: list[str] = []
        self.asked: set[str] = set()
        self.variables: set[str] = set()
        self._imports = 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Records in its context what this thread runs, except the code of this library."""
        earlier, thread = sys.getprofile(), get_ident()
        hook = register_module_forward_pre_hook(self._called)
        plain = {name: getattr(builtins, name) for name in _ASKS}

        def asking(ask: Callable[..., Any]) -> Callable[..., Any]:
            def asked(owner: Any, name: Any, *default: Any) -> Any:
                if get_ident() == thread and type(name) is str:
                    self.asked.add(name)
                return ask(owner, name, *default)

            return asked

        # Nothing else shows the name: a profiler sees no arguments of Python's own functions.
        vars(builtins).update({name: asking(ask) for name, ask in plain.items()})
        sys.setprofile(self._ran)
        try:
            yield
        finally:
            sys.setprofile(earlier)
            vars(builtins).update(plain)
            hook.remove()

    def _ran(self, frame: FrameType, event: str, function: Any) -> None:
        code = frame.f_code
        if code.co_name == _IMPORT and code.co_filename == _IMPORTS:
            # Code that runs when a module is first imported doesn't run again.
            self._imports += (event == "call") - (event == "return")
        elif self._imports:
            return
        elif event == "c_call":
            owner = getattr(function, "__self__", None)
            if isinstance(owner, random.Random) and function.__name__ not in _PUT_BACK:
                self.random.append(line_of(frame))
        elif event == "call" and not code.co_filename.startswith(_OWN):
            self.codes[id(code)] = code, frame.f_globals
            if code is _ENVIRON:
                self.variables.add(frame.f_locals["key"])

    def _called(self, module: nn.Module, _: Any) -> None:
        self.modules[id(module)] = module

    def read(self) -> "Read":
        """Returns the names that the code uses."""
        every, own, by_dict = set(self.asked), set(self.asked), set[Any]()
        identities, matches = set[str](), False
        within: dict[Any, set[str]] = {}
        for code, values in self.codes.values():
            every |= (names := _names_in(code))
            if is_of_packages(file := values.get("__name__")):
                within.setdefault(file, set()).update(names)
            else:
                own |= names
                steps = list(dis.get_instructions(code))
                identities |= {s.argval for s in steps if s.opname in _READS} & IDENTITIES
                matches |= any(s.opname == "MATCH_CLASS" for s in steps)
                if names & _BY_DICT and code.co_name not in FORWARDS:
                    by_dict.add(file)
        return Read(
            frozenset(every),
            frozenset(own),
            within,
            frozenset(by_dict),
            frozenset(identities),
            matches,
        )

    def names_in_modules(self) -> Iterator[tuple[ModuleType, set[str]]]:
        """Yields each Python module that the model's code names, with the names it reads of it."""
        found: dict[int, tuple[ModuleType, set[str]]] = {}
        for code, values in self.codes.values():
            if is_of_packages(values.get("__name__")):
                continue
            names = _names_in(code)
            pending = [values[name] for name in names & values.keys()]
            pending += map(sys.modules.get, _imported_in(code, values))
            seen = set()
            while pending:
                module = pending.pop()
                if isinstance(module, ModuleType) and id(module) not in seen:
                    seen.add(id(module))
                    read = names & vars(module).keys()
                    found.setdefault(id(module), (module, set()))[1].update(read)
                    pending += (vars(module)[name] for name in read)
        yield from found.values()

    def names_in_globals(self) -> Iterator[tuple[dict[str, Any], set[str] | None]]:
        """Yields the globals of each file, with the names that the code reads, or None for all."""
        found: dict[int, tuple[dict[str, Any], set[str]]] = {}
        for code, values in self.codes.values():
            found.setdefault(id(values), (values, set()))[1].update(_names_in(code))
        for values, names in found.values():
            dynamic = "globals" in names and not is_of_packages(values.get("__name__"))
            yield values, None if dynamic else names & values.keys()


class Read(NamedTuple):
    """The names that code uses, and therefore may read of objects.

    Attributes:
        every: all names.
        own: the names in the model's own code, and not in Python's or torch's.
        within: the names in the code of each of Python's and torch's files.
        by_dict: the files whose code may read all attributes at once, as by ``__dict__``.
        identities: by what the model's own code tells tensors apart, without reading their numbers.
        matches: whether it may read attributes by their place in a pattern (``case Point(0, y)``).
    """

    every: frozenset[str]
    own: frozenset[str]
    within: Mapping[Any, set[str]]
    by_dict: frozenset[Any]
    identities: frozenset[str]
    matches: bool


def _imported_in(code: CodeType, values: dict[str, Any]) -> set[str]:
    """Returns the names of the modules that code imports itself."""
    names = {s.argval for s in dis.get_instructions(code) if s.opname == "IMPORT_NAME"}
    return names | {f"{values.get('__package__')}.{name}" for name in names}


def line_of(frame: FrameType) -> str:
    """Returns the line that a frame runs, or the line of the first caller in the model's code."""
    while frame.f_back is not None and not _may_be_models(frame.f_code.co_filename):
        frame = frame.f_back
    path, number = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(path, number).strip()
    return f"{path}:{number} in {frame.f_code.co_name}: `{text}`"


def _may_be_models(path: str) -> bool:
    """Returns whether a file belongs to none of this library, torch, Captum and Python."""
    standard = path.startswith(_STANDARD) and not path.startswith(_INSTALLED)
    return not standard and not path.startswith((_OWN, *_BELOW))


@contextmanager
def uncollected() -> Iterator[None]:
    """Disables the collection of cycles in its context: finalizers would count as the model's.

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


@functools.lru_cache(maxsize=4096)  # a call is captured again and again, and runs the same code
def _names_in(code: CodeType) -> frozenset[str]:
    # A name that is only written, such as the last output that a module keeps, is not read.
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
    return frozenset(found)
