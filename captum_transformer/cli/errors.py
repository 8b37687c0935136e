"""Errors that the user of the command line can fix."""

import re

# What makes a terminal write in colours.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class UserError(Exception):
    """Something about the arguments or the files; the message is all that is shown of it."""


def one_line(error: BaseException, most: int = 300) -> str:
    r"""What an error of another library says, in one line.

    Args:
        error: The error.
        most: How many characters of it are shown.

    Returns:
        Its text.

    Example:
        >>> one_line(ValueError("no\n  weights"))
        'no weights'
    """
    text = " ".join(_COLOURS.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} …"
