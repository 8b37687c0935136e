"""What the user of the command line can put right."""


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
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} …"
