"""Tables of rules: what a pass does at each kind of operation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from captum_transformer.rules.propagate import unsupported
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation

OneOutputRule = Callable[[Operation, Tensor], list[Tensor | None]]


class Entry(NamedTuple):
    """A line of a table.

    Attributes:
        rule: what to do with the relevance of the first output; there is none of the others.
        keeps: whether the rule reads the operands' data, so that they are kept.
        of_all: whether the rule gets the relevance of all outputs, in a list.
    """

    rule: Callable[[Operation, Any], list[Tensor | None]]
    keeps: bool = False
    of_all: bool = False


class Table:
    """The rules of a pass by kind of operation; what isn't in it is refused.

    A method is a table with some entries changed: ``table | {Kind.ADD: Entry(rule, keeps=True)}``.

    Args:
        entries: a rule for each kind.
    """

    def __init__(self, entries: Mapping[Kind, Entry]) -> None:
        self.entries = dict(entries)

    def __or__(self, changed: Mapping[Kind, Entry]) -> "Table":
        return Table({**self.entries, **changed})

    def __call__(self, operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
        """Applies the rule for the operation's kind."""
        entry = self.entries.get(operation.kind)
        if entry is None:
            raise unsupported(operation, "what it hands on to its operands is not known")
        if entry.of_all:
            return entry.rule(operation, incoming)
        first, *others = incoming
        if first is None or any(other is not None for other in others):
            raise unsupported(operation, "only its first output has a rule")
        return entry.rule(operation, first)

    @property
    def keep(self) -> frozenset[Kind]:
        """The kinds of operation whose operands the rules read."""
        return frozenset(kind for kind, entry in self.entries.items() if entry.keeps)
