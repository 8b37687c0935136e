"""Runs compiled code uncompiled while a forward pass is traced, as the trace must see its calls."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn

# The name under which a compiled module holds the original one.
_WRAPPED = "_orig_mod"
# `flex_attention` compiles itself, and imports the compiler only then.
_COMPILES = ("torch._dynamo", "torch.nn.attention.flex_attention")


def written_name(name: str) -> str:
    """Returns a module's dotted name without the wrappers that `torch.compile` adds.

    >>> written_name("_orig_mod.layers.0._orig_mod.mlp")
    'layers.0.mlp'
    """
    if _WRAPPED not in name:
        return name
    return ".".join(part for part in name.split(".") if part != _WRAPPED)


class _Stance:
    """Sets the compiler's stance, which all threads share; the last one that leaves restores it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._before: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.compiler.set_stance("force_eager")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(None, None, None)
                self._before = None


_STANCE = _Stance()


@contextmanager
def uncompiled(modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Runs everything that `torch.compile` has compiled as it was written.

    Args:
        modules: the modules that will run, as far as they are known.

    Example:
        >>> double = torch.compile(lambda x: 2 * x)
        >>> with uncompiled():
        ...     double(torch.ones(2))
        tensor([2., 2.])
    """
    if not any(name in sys.modules for name in _COMPILES):
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_STANCE)
        if any(_WRAPPED in vars(module).get("_modules", ()) for module in modules):
            stack.enter_context(warnings.catch_warnings())
            # It is about hooks that compiled modules call twice; that of `explaining` allows it.
            warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global")
        yield
