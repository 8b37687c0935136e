"""Where the words that a template is filled with stand in the text that comes of it."""

import re
from collections.abc import Sequence

# A character of nobody's language.
_MARK = "\ue0ff"


def mark(number: int) -> str:
    """What a template is filled with to find a place in it.

    >>> "of {}".format(mark(0)) == "of " + mark(0)
    True
    """
    return f"{_MARK}{number}{_MARK}"


def places_of(text: str, marked: str, words: Sequence[str]) -> list[tuple[int, int, int]] | None:
    """The places of words in a text.

    Args:
        text: what the template has made of the words.
        marked: what it has made of their marks: between marks stands what is the template's own.
        words: what it was filled with.

    Returns:
        The number of the words, begin and end of each place, in their order; None if the template
        has made something else of the words.

    Example:
        >>> template = "{} is in {}, {}.".format
        >>> words = ["Rome", "Italy", "is"]
        >>> places_of(template(*words), template(*map(mark, range(3))), words)
        [(0, 0, 4), (1, 11, 16), (2, 18, 20)]
    """
    *before, end = re.split(f"{_MARK}\\d+{_MARK}", marked)
    numbers = [int(number) for number in re.findall(f"{_MARK}(\\d+){_MARK}", marked)]
    found, at = [], 0
    for between, number in zip(before, numbers, strict=True):
        start, said = at + len(between), words[number]
        # Many templates strip what is said.
        said = said if text.startswith(said, start) else said.strip()
        if not text.startswith(between, at) or not text.startswith(said, start):
            return None
        at = start + len(said)
        found.append((number, start, at))
    return found if text[at:] == end else None
