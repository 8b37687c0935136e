"""The entry of one function in the table, and the names that the table uses."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from captum_transformer.trace.kinds import ENTRIES_ALONE, Form, Kind, Role

# The role of a tensor by the name of its argument; tensors under all other names are signals.
ROLES = {
    "weight": Role.WEIGHT,
    "bias": Role.BIAS,
    "index": Role.INDEX,
    "brackets": Role.INDEX,
    "repeats": Role.INDEX,
    "sizes": Role.EXTENT,
    "shape": Role.EXTENT,
    "start": Role.EXTENT,
    "length": Role.EXTENT,
    "mask": Role.MASK,
    "running_mean": Role.STATISTIC,
    "running_var": Role.STATISTIC,
}

ALIASES = {"axis": "dim", "self": "input", "tensor": "input", "src": "source", "indices": "index"}


class Entry(NamedTuple):
    """The entry of a function in the table.

    Attributes:
        kind: the kind of the function.
        parameters: the canonical names of its positional arguments.
        rest: the canonical name for all further positional arguments together, or None.
        aliases: a mapping from other argument names to canonical names.
        along: the dimensions that the function works along by default, if its ``dim`` names none;
            along all others, each entry keeps its position. None if ``dim`` doesn't determine them.
        form: the form of an entry-wise function, where it matters.
    """

    kind: Kind
    parameters: tuple[str, ...]
    rest: str | None
    aliases: Mapping[str, str]
    along: slice | None = None
    form: Form | None = None

    def canonical(self, name: str) -> str:
        """Returns the canonical name of an argument. Kernels call the first argument ``self``.

        >>> entry_of(Kind.PRODUCT, "bias/input input/mat1 other/mat2").canonical("self")
        'bias'
        """
        usual = ALIASES.get(name, name)
        return self.aliases.get(name) or self.aliases.get(usual, usual)

    def in_order(self, names: Iterable[str]) -> "Entry":
        """Returns the entry with all arguments in another order."""
        return self._replace(parameters=tuple(map(self.canonical, names)), rest=None)


def entry_of(kind: Kind, arguments: str) -> Entry:
    """Parses a line of the table, which lists the arguments in order.

    A slash adds another name for an argument, and a star marks the argument that takes all further
    ones. ``@`` is followed by the dimensions that the function works along if its ``dim`` names
    none: by default none for kinds that treat each entry alone, unknown for moves and unknown
    kinds, and all dimensions for the others. ``!`` is followed by the form.

    >>> entry_of(Kind.MOVE, "input *dims/axes").aliases
    {'axes': 'dims'}
    >>> entry_of(Kind.CHOICE, "input k dim @-1:").along
    slice(-1, None, None)
    """
    parameters: list[str] = []
    rest: str | None = None
    aliases: dict[str, str] = {}
    form = None
    along = None if kind in (Kind.MOVE, Kind.UNKNOWN) else slice(None)
    if kind in ENTRIES_ALONE:
        along = slice(0)
    for argument in arguments.split():
        if argument.startswith("@"):
            ends = argument[1:].split(":")
            along = slice(*(int(end) if end else None for end in ends))
            continue
        if argument.startswith("!"):
            form = Form[argument[1:].upper()]
            continue
        canonical, *others = argument.lstrip("*").split("/")
        aliases |= dict.fromkeys(others, canonical)
        if argument.startswith("*"):
            rest = canonical
        else:
            parameters.append(canonical)
    return Entry(kind, tuple(parameters), rest, aliases, along, form)
