"""Errors that the user of the command line can fix."""

import re

# The escape sequences that make a terminal write in colours.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class UserError(Exception):
    """An error in the arguments or the files, of which only the message is shown."""


def one_line(error: BaseException, most: int = 300) -> str:
    r"""Returns the message of another library's error in one line.

    Args:
        error: The error.
        most: The maximum number of characters.

    Returns:
        The message, or the error's class if it has none.

    Example:
        >>> one_line(ValueError("no\n  weights"))
        'no weights'
    """
    text = " ".join(_COLOURS.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} …"
