"""Captum's usage log, which its tools rely on."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from captum.log import log_usage

Function = TypeVar("Function", bound=Callable[..., Any])


def logged(function: Function) -> Function:
    """Applies Captum's ``log_usage``, which its tools expect on ``attribute``; keeps the type."""
    return cast(Function, log_usage(part_of_slo=True)(function))
