"""Going back through the history of a value.

Each value is visited once. The number of paths to it may be astronomical: a loop of thirty steps
``x = x + x * x`` has three to the power of thirty.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from captum_transformer.trace.value import Value

T = TypeVar("T")


class _Placed(Protocol):
    """A value, or what is known of one."""

    @property
    def index(self) -> int: ...


Placed = TypeVar("Placed", bound=_Placed)


def found_behind(value: "Value", step: Callable[["Value"], "list[Value] | T"]) -> Iterator[T]:
    """Yields what is found at the ends of all ways back from a value.

    Args:
        value: where the ways begin.
        step: returns the values to go on to from a value, or what is found at this value.
    """
    pending: list[Value] = [value]
    seen: set[Value] = set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        found = step(value)
        if isinstance(found, list):
            pending += reversed(found)
        else:
            yield found


def earliest_first(value: Placed, sources: Callable[[Placed], list[Placed]]) -> list[Placed]:
    """Returns a value, or what is known of it, and those it was made from, each after its sources.

    Args:
        value: the last one.
        sources: returns the values to go on to from a value.
    """
    pending, seen = [value], {value}
    while pending:
        further = [source for source in sources(pending.pop()) if source not in seen]
        seen.update(further)
        pending += further
    return sorted(seen, key=lambda one: one.index)
