"""The names of a model's classes, and from what a user calls a class to its number."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from captum_transformer.errors import InvalidTargetError

Names: TypeAlias = Mapping[int, str] | Sequence[str]
_SHOWN = 5


def class_names(model: Any) -> dict[int, str]:
    """The names that a model of Transformers or timm knows of its classes.

    Args:
        model: The model.

    Returns:
        Names by number; empty if it knows none.
    """
    config = getattr(model, "config", None)
    found = dict(getattr(config, "id2label", None) or {})
    if not found:
        pretrained = getattr(model, "pretrained_cfg", None) or {}
        found = dict(enumerate(pretrained.get("label_names") or ()))
    # Transformers' filling for names that nobody gave.
    return {int(n): str(name) for n, name in found.items() if name != f"LABEL_{n}"}


def numbered(names: Names | None) -> dict[int, str]:
    """The names of classes by number.

    Args:
        names: A list in the order of the numbers, or a mapping; None if there are none.
    """
    if names is None:
        return {}
    return dict(names) if isinstance(names, Mapping) else dict(enumerate(names))


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
        InvalidTargetError: If there is no such class, or more than one.

    Example:
        >>> find_class("Tabby Cat", {0: "tiger", 1: "tabby, tabby cat"}, 2)
        1
    """
    wanted = asked.strip().casefold()
    synonyms = {
        number: [name.casefold(), *(part.strip().casefold() for part in name.split(","))]
        for number, name in names.items()
    }
    found = [number for number, known in synonyms.items() if wanted in known]
    if wanted.isdecimal() and (not found or count is None or int(wanted) < count):
        found = list(dict.fromkeys([*found, check_class(int(wanted), count)]))
    found = found or [number for number, known in synonyms.items() if wanted in known[0]]
    if wanted and len(found) == 1:
        return found[0]
    if wanted and found:
        several = "; ".join(f"{n} ({names.get(n, 'no name')})" for n in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InvalidTargetError(
            f"{asked!r} may be several classes: {several}{more}. Give the number."
        )
    flat = {known: number for number, every in synonyms.items() for known in every}
    close = [f"{flat[name]} ({name})" for name in get_close_matches(wanted, flat, 3, 0.6)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if not names:
        hint = " The model knows no names of its classes: give a number, or the names."
    raise InvalidTargetError(f"There is no class named {asked!r}.{hint}")


def check_class(number: int, count: int | None) -> int:
    """The number of a class, if there is such a class.

    Args:
        number: The number.
        count: How many classes there are, if that is known.

    Raises:
        InvalidTargetError: If there is none.
    """
    if number < 0 or (count is not None and number >= count):
        known = "" if count is None else f": the model has {count}, from 0 to {count - 1}"
        raise InvalidTargetError(f"There is no class {number}{known}.")
    return number
