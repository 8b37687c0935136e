"""Prints messages and progress, without control characters."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Literal, TextIO, TypeVar

from tqdm import tqdm

from captum_transformer.visualization.tokens import visible

Item = TypeVar("Item")
Color = Literal["auto", "always", "never"]


def with_progress(items: Iterable[Item], count: int) -> Iterator[Item]:
    """Yields items, with a progress bar on a terminal if there are several.

    Args:
        items: The items.
        count: The number of items.

    Yields:
        The items.
    """
    # None: show the bar only if standard error is a terminal.
    yield from tqdm(items, total=count, unit="input", disable=True if count < 2 else None)


def say(line: str) -> None:
    """Prints a line of results.

    Args:
        line: The line.
    """
    tqdm.write(line, file=sys.stdout)


def complain(line: str) -> None:
    """Prints a message to standard error.

    Args:
        line: The message; control characters, such as in a file's name, are replaced.
    """
    tqdm.write(f"captum-transformer: {visible(line)}", file=sys.stderr)


def wants_color(choice: Color, stream: TextIO) -> bool:
    """Returns whether to write in colours, according to https://no-color.org.

    Args:
        choice: The user's choice.
        stream: The stream to write to.

    Returns:
        Whether to write in colours.
    """
    if choice == "auto":
        return stream.isatty() and not os.environ.get("NO_COLOR")
    return choice == "always"
