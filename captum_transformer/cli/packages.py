"""Imports optional libraries of models."""

from importlib import import_module
from typing import Any

from captum_transformer.cli.errors import UserError


def package(name: str, extra: str) -> Any:
    """Imports a module of an optional library.

    Args:
        name: The module.
        extra: The extra of this package that installs the library.

    Returns:
        The module.

    Raises:
        UserError: If it is not installed; the message says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{name.split('.', maxsplit=1)[0]} is needed for this: "
            f"pip install 'captum-transformer[{extra}]' ({error})"
        ) from error
