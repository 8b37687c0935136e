"""Walking through nested arguments: the one place that knows how tensors are nested in them."""

from collections.abc import Callable, Iterator
from typing import Any


def mapped(function: Callable[[Any], Any], kind: type, argument: Any) -> Any:
    """Applies a function to every object of one type in nested arguments and returns the result.

    >>> mapped(lambda number: number + 1, int, ([1, 2], {"a": 3, "b": "text"}))
    ([2, 3], {'a': 4, 'b': 'text'})
    """
    if isinstance(argument, kind):
        return function(argument)
    if isinstance(argument, dict):
        return {key: mapped(function, kind, part) for key, part in argument.items()}
    if isinstance(argument, (list, tuple)):
        parts = [mapped(function, kind, part) for part in argument]
        if isinstance(argument, list):
            return parts
        return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)
    return argument


def leaves(kind: type, argument: Any) -> Iterator[Any]:
    """Yields every object of one type in nested arguments, in order.

    >>> list(leaves(int, ([1, 2], {"a": 3, "b": "text"})))
    [1, 2, 3]
    """
    if isinstance(argument, kind):
        yield argument
    elif isinstance(argument, dict):
        for part in argument.values():
            yield from leaves(kind, part)
    elif isinstance(argument, (list, tuple)):
        for part in argument:
            yield from leaves(kind, part)
