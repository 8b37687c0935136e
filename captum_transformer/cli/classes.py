"""From what a user calls a class to its number."""

from collections.abc import Mapping
from difflib import get_close_matches

from captum_transformer.cli.errors import UserError

_SHOWN = 5


def find_class(asked: str, names: Mapping[int, str], count: int | None) -> int:
    """Finds the class that a user means.

    Args:
        asked: An id, a name, one of the names that stand between commas ("tabby, tabby cat"), or a
            part that only one name has. Case doesn't matter.
        names: The known names.
        count: How many classes there are, if that is known.

    Returns:
        The id.

    Raises:
        UserError: If there is no such class, or more than one.

    Example:
        >>> find_class("Tabby Cat", {0: "tiger", 1: "tabby, tabby cat"}, 2)
        1
    """
    wanted = asked.strip().casefold()
    if wanted.isdecimal():
        if count is not None and int(wanted) >= count:
            raise UserError(
                f"There is no class {asked}: the model has {count}, from 0 to {count - 1}."
            )
        return int(wanted)
    synonyms = {
        number: [name.casefold(), *(part.strip().casefold() for part in name.split(","))]
        for number, name in names.items()
    }
    exact = [number for number, known in synonyms.items() if wanted in known]
    found = exact or [number for number, known in synonyms.items() if wanted in known[0]]
    if wanted and len(found) == 1:
        return found[0]
    if wanted and found:
        several = "; ".join(f"{number} ({names[number]})" for number in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(f"{asked!r} may be several classes: {several}{more}. Give the id.")
    flat = {known: number for number, every in synonyms.items() for known in every}
    close = [f"{flat[name]} ({name})" for name in get_close_matches(wanted, flat, 3, 0.6)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if not names:
        hint = " The model knows no names: give an id, or a file of names with --labels."
    raise UserError(f"There is no class named {asked!r}.{hint}")
