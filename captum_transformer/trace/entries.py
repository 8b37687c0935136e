"""What the table of functions says of one, and the words that it says it in."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from captum_transformer.trace.kinds import ENTRIES_ALONE, Form, Kind, Role

# What a tensor is for, by the argument that it is given as; all others are signals.
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
    """What the table says of a function.

    Attributes:
        kind: what it is.
        parameters: the canonical names of its arguments by position.
        rest: the canonical name for all further ones together, if it takes them.
        aliases: from what else an argument is called to its canonical name.
        along: which dimensions it works along where its ``dim`` names none; along the others each
            entry stays at its place. None if ``dim`` does not tell.
        form: what a function of each entry is, where that matters.
    """

    kind: Kind
    parameters: tuple[str, ...]
    rest: str | None
    aliases: Mapping[str, str]
    along: slice | None = None
    form: Form | None = None

    def canonical(self, name: str) -> str:
        """The canonical name of an argument; kernels call the first one ``self``.

        >>> entry_of(Kind.PRODUCT, "bias/input input/mat1 other/mat2").canonical("self")
        'bias'
        """
        usual = ALIASES.get(name, name)
        return self.aliases.get(name) or self.aliases.get(usual, usual)

    def in_order(self, names: Iterable[str]) -> "Entry":
        """The same of a function whose arguments, all of them, have another order."""
        return self._replace(parameters=tuple(map(self.canonical, names)), rest=None)


def entry_of(kind: Kind, arguments: str) -> Entry:
    """What a line of the table says: the arguments in their order.

    After a slash stands what else an argument is called; one with a star takes all further ones.
    Behind an @ stand the dimensions that the function works along if its ``dim`` names none.
    Otherwise that is none of them for what works entry by entry, and all for all else but moves.
    Behind a ! stands its form.

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
