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
    """Goes through items, with a bar on a terminal if there are several.

    Args:
        items: What is gone through.
        count: How many there are.

    Yields:
        The items.
    """
    # None: only where standard error is a terminal.
    yield from tqdm(items, total=count, unit="input", disable=True if count < 2 else None)


def say(line: str) -> None:
    """Prints a line of results.

    Args:
        line: The line.
    """
    tqdm.write(line, file=sys.stdout)


def complain(line: str) -> None:
    """Prints a line about what went wrong, to standard error.

    Args:
        line: The line; control characters that a file's name may have are replaced.
    """
    tqdm.write(f"captum-transformer: {visible(line)}", file=sys.stderr)


def wants_color(choice: Color, stream: TextIO) -> bool:
    """Whether to write in colours, by https://no-color.org.

    Args:
        choice: What the user said.
        stream: Where to write.

    Returns:
        Whether to.
    """
    if choice == "auto":
        return stream.isatty() and not os.environ.get("NO_COLOR")
    return choice == "always"
