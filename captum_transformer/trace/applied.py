"""Custom ``autograd.Function`` classes that the trace sees as one torch function each.

``Function.apply`` is not a torch function, so it can't be intercepted. While a forward pass is
traced, ``apply`` of each Function that has been described passes its call to the trace first.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch.autograd import Function
from torch.overrides import handle_torch_function


def seen(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a callable so that its calls go through the trace if one is active."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch._C._len_torch_function_stack():  # noqa: SLF001
            return handle_torch_function(run, (), *args, **kwargs)
        return call(*args, **kwargs)

    run.__name__ = getattr(call, "__self__", call).__name__
    return run


class Applied:
    """The Functions that have been described, and the replacements of their ``apply``.

    Within the context the replacements are installed. One instance serves all threads: the last
    thread that exits restores the original ``apply``.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._instead: dict[type[Function], Callable[..., Any]] = {}
        self._own: list[tuple[type[Function], Any]] = []

    def add(self, function: type[Function]) -> Callable[..., Any]:
        """Adds a Function, and returns the callable that replaces its ``apply`` in later traces."""
        instead = self._instead[function] = seen(function.apply)
        return instead

    def __contains__(self, function: Any) -> bool:
        return function in self._instead

    def remove(self, function: type[Function]) -> None:
        """Removes a Function: later traces no longer recognize it."""
        self._instead.pop(function, None)

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                for function, instead in self._instead.items():
                    self._own.append((function, vars(function).get("apply")))
                    function.apply = staticmethod(instead)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside:
                return
            for function, own in self._own:
                if own is None:
                    del function.apply
                else:
                    function.apply = own
            self._own.clear()


APPLIED = Applied()
