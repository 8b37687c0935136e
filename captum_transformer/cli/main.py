"""Runs the commands, and reports errors in one line."""

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TextIO

from captum_transformer.cli.errors import UserError
from captum_transformer.cli.options import parsed

_MODULES = {"explain": "explain", "inspect": "look"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; by default the arguments of the process.

    Returns:
        The exit status: 0; 1 if some inputs could not be explained; 2 if an argument or the model
        is invalid, so that no input was tried; 130 if the user interrupted it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal with few characters shows a replacement for others, instead of an error.
            stream.reconfigure(errors="replace")
    arguments = parsed(argv)
    # Imported here, since these modules import PyTorch, which is slow.
    run = import_module(f"captum_transformer.cli.{_MODULES[arguments.command]}").run
    complain = _complain()
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            status: int = run(arguments)
        except UserError as error:
            complain(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            complain("interrupted")
            return 130
    return status


def _complain() -> Callable[[str], None]:
    from captum_transformer.cli.progress import complain

    return complain


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001 - the form is Python's
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    if not issubclass(category, DeprecationWarning | FutureWarning):
        _complain()(f"warning: {message}")
