"""The types of values of the command line."""

import argparse
import ast
import math
from typing import Any

from captum_transformer.cli.names import METHODS, NOT_OF_THE_MODEL

_ORDER = " (give inputs before options that take several values)"


def number(text: str) -> float:
    """Parses a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number{_ORDER}")
    return value


def method(name: str) -> str:
    """Parses the name of a method, in any case."""
    known = {method.casefold(): method for method in METHODS}
    if name.casefold() not in known:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(METHODS)}")
    return known[name.casefold()]


def keyword(text: str) -> tuple[str, Any]:
    """Parses ``NAME=VALUE``, an argument that a model is built with."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()) or name in NOT_OF_THE_MODEL:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an argument of a model: NAME=VALUE{_ORDER}"
        )
    try:
        return name, ast.literal_eval(value)
    # A word needs no quotes.
    except (ValueError, SyntaxError):
        return name, value


def positive(text: str) -> int:
    """Parses a positive whole number."""
    if not (text.isdecimal() and 0 < int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def hops(text: str) -> int | None:
    """Parses a number from 0 on, or ``all``, which is None."""
    if text == "all":
        return None
    if not (text.isdecimal() and int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 on nor 'all'")
    return int(text)


def scale(text: str) -> float:
    """Parses a positive number."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value
