"""The names of a model's classes, and the search for a class by name."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from captum_transformer.errors import InvalidInputError, InvalidTargetError

Names: TypeAlias = Mapping[int, str] | Sequence[str]
_SHOWN = 5


class ClassNames:
    """The known names of a model's classes.

    A model of Transformers or timm whose head was replaced keeps the names of the classes that it
    was trained for before. So its names are used only if their number matches its scores.

    Args:
        model: The model.
        given: Names given by the user, which have priority: a list with one for each class, or a
            mapping from some numbers to names.
    """

    def __init__(self, model: Any, given: Names | None = None) -> None:
        config = getattr(model, "config", None)
        pretrained = getattr(model, "pretrained_cfg", None) or {}
        known = getattr(config, "id2label", None) or pretrained.get("label_names")
        self._known = _numbered(known or {})
        self._given = given

    def of(self, count: int) -> dict[int, str]:
        """Returns the names by number.

        Args:
            count: The number of classes.

        Raises:
            InvalidInputError: If the user gave another number of names, or some of other classes.
        """
        given = {} if self._given is None else _numbered(self._given)
        listed = not isinstance(self._given, Mapping) and self._given is not None
        if (listed and len(given) != count) or any(not 0 <= n < count for n in given):
            raise InvalidInputError(
                f"The model gives {count} scores, and `names` has {len(given)} names: give a list "
                "with a name for each class, or a mapping from the numbers of some to names."
            )
        known = self._known if len(self._known) == count else {}
        # Transformers' placeholders for names that were not given are left out.
        return {n: name for n, name in known.items() if name != f"LABEL_{n}"} | given


def _numbered(names: Names) -> dict[int, str]:
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(number): str(name) for number, name in pairs}


def label_of(number: int, names: Mapping[int, str]) -> str:
    """The label of a class, for example ``tabby, tabby cat (281)``.

    Args:
        number: The class.
        names: The known names.
    """
    name = names.get(number, "")
    return f"{name} ({number})" if name else f"class {number}"


def find_class(asked: str, names: Mapping[int, str], count: int | None) -> int:
    """Finds the class that a user asks for.

    Args:
        asked: An id, a name, one of several names separated by commas ("tabby, tabby cat"), a
            part that occurs in only one name, or both as in a label ("tabby cat (281)"). Case is
            ignored.
        names: The known names.
        count: The number of classes, if it is known.

    Returns:
        The id.

    Raises:
        InvalidTargetError: If there is no such class, or more than one.

    Example:
        >>> find_class("Tabby Cat", {0: "tiger", 1: "tabby, tabby cat"}, 2)
        1
    """
    wanted = asked.strip().casefold()
    written = [number for number in names if label_of(number, names).casefold() == wanted]
    if written:
        return written[0]
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
        several = "; ".join(label_of(n, names) for n in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InvalidTargetError(
            f"{asked!r} may be several classes: {several}{more}. Give one as it is written here."
        )
    flat = {known: number for number, every in synonyms.items() for known in every}
    close = [f"{name} ({flat[name]})" for name in get_close_matches(wanted, flat, 3, 0.6)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if not names:
        hint = " No names of the model's classes are known: give a number, or the names."
    raise InvalidTargetError(f"There is no class named {asked!r}.{hint}")


def check_class(number: int, count: int | None) -> int:
    """Returns the number of a class if it exists.

    Args:
        number: The number.
        count: The number of classes, if it is known.

    Raises:
        InvalidTargetError: If there is no such class.
    """
    if number < 0 or (count is not None and number >= count):
        known = "" if count is None else f": the model has {count}, from 0 to {count - 1}"
        raise InvalidTargetError(f"There is no class {number}{known}.")
    return number
