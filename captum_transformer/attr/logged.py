"""Captum's log of what is used, which its tools count on."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from captum.log import log_usage

Function = TypeVar("Function", bound=Callable[..., Any])


def logged(function: Function) -> Function:
    """Captum's ``log_usage``, which its tools count on in an ``attribute``, with the type kept."""
    return cast(Function, log_usage(part_of_slo=True)(function))
