"""Finds the words that a template was filled with in the resulting text."""

import re
from collections.abc import Sequence

# A private-use character, which belongs to no language.
_MARK = "\ue0ff"


def mark(number: int) -> str:
    """Returns a mark to fill into a template in order to find its place in the result.

    >>> "of {}".format(mark(0)) == "of " + mark(0)
    True
    """
    return f"{_MARK}{number}{_MARK}"


def places_of(text: str, marked: str, words: Sequence[str]) -> list[tuple[int, int, int]] | None:
    """Returns the places of words in the text of a template that was filled with them.

    Args:
        text: the template filled with the words.
        marked: the template filled with their marks: text between marks is the template's own.
        words: the words.

    Returns:
        The index of the word, start and end of each place, in order of the text; None if the
        template has changed the words.

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
        # Many templates strip the words.
        said = said if text.startswith(said, start) else said.strip()
        if not text.startswith(between, at) or not text.startswith(said, start):
            return None
        at = start + len(said)
        found.append((number, start, at))
    return found if text[at:] == end else None
