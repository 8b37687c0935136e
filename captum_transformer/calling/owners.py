"""Which of the objects that a model's attributes lead to are state of the model."""

import functools
import inspect
import io
import socket
import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from multiprocessing.process import BaseProcess
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

_OF_OTHERS = (
    Dataset,
    DataLoader,
    threading.Thread,
    type(threading.Lock()),
    type(threading.RLock()),
    BaseProcess,
    io.IOBase,
    socket.socket,
)


class Beside:
    """Tells objects beside a model from those that are part of its state.

    Objects that hold the model or its parameters train the model, such as a trainer or an
    optimizer. Objects that hold locks, threads, processes or files may be written to by others at
    any time. Data sets feed models.

    Args:
        modules: the model and its submodules.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> beside = Beside([model])
        >>> beside(model.weight), beside(nn.Linear(1, 1)), beside(threading.Lock())
        (True, False, True)
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        parameters = (vars(module).get("_parameters", {}).values() for module in modules)
        self._own = frozenset(map(id, chain(modules, *parameters))) - {id(None)}

    def __call__(self, part: Any) -> bool:
        """Returns whether an object that holds this part stands beside the model."""
        return id(part) in self._own or isinstance(part, _OF_OTHERS)


def of_class(kind: type) -> dict[str, Any]:
    """Returns the attributes of a user's class that all instances share, except code.

    Args:
        kind: the class.

    Returns:
        Values by name; none for classes of Python, PyTorch and Lightning.

    Example:
        >>> class Counts:
        ...     total = 0
        ...     def count(self): ...
        >>> of_class(Counts), of_class(nn.Module)
        ({'total': 0}, {})
    """
    if kind.__module__.partition(".")[0] in _OF_LIBRARIES:
        return {}
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith(("__", "_abc_"))
        and not inspect.isroutine(value)
        and not hasattr(value, "__get__")
    }


_OF_LIBRARIES = frozenset({"builtins", "torch", "pytorch_lightning", "lightning"})


def reached_by(function: Any) -> Iterator[tuple[str, Any]]:
    """Yields what a function holds: its object, bound arguments, variables of its closure.

    Args:
        function: a function, a method or a ``functools.partial``.

    Yields:
        Names and values.

    Example:
        >>> def count(start):
        ...     return lambda: start + 1
        >>> dict(reached_by(count(5)))
        {'start': 5}
    """
    if isinstance(function, functools.partial):
        yield "func", function.func
        yield from ((str(place), value) for place, value in enumerate(function.args))
        yield from function.keywords.items()
    elif inspect.ismethod(function):
        yield "__self__", function.__self__
        yield from reached_by(function.__func__)
    elif inspect.isfunction(function):
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                yield name, cell.cell_contents
            except ValueError:  # not filled yet
                continue
