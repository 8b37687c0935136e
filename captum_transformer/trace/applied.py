"""Custom ``autograd.Function`` s that are described to the trace: seen as one torch function each.

What applies such a Function is no torch function, so nothing of it can be intercepted. While a
forward pass is traced, ``apply`` of those that are described hands itself to the trace first.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch.autograd import Function
from torch.overrides import handle_torch_function


def seen(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that hands itself to the trace, and does outside of it what it did."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch._C._len_torch_function_stack():  # noqa: SLF001
            return handle_torch_function(run, (), *args, **kwargs)
        return call(*args, **kwargs)

    run.__name__ = getattr(call, "__self__", call).__name__
    return run


class Applied:
    """The Functions that are described, with what takes the place of their ``apply``.

    As a context manager it puts that there; one for all threads, the last to leave puts it back.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._instead: dict[type[Function], Callable[..., Any]] = {}
        self._own: list[tuple[type[Function], Any]] = []

    def add(self, function: type[Function]) -> Callable[..., Any]:
        """What takes the place of the ``apply`` of a Function from the next trace on."""
        instead = self._instead[function] = seen(function.apply)
        return instead

    def __contains__(self, function: Any) -> bool:
        return function in self._instead

    def remove(self, function: type[Function]) -> None:
        """From the next trace on the Function is unknown again."""
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
