"""Converts arguments by name for Captum's own methods, which pass all by position."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning_callbacks.samples.batch import Samples


def by_position(samples: Samples, forward: Callable[..., Any]) -> Samples:
    """Puts arguments that are passed by name into the order of a function's parameters.

    Args:
        samples: The samples.
        forward: The function that a method will call, with the inputs first. It may have other
            names for the inputs, but not for the further arguments.

    Returns:
        The same samples, with all arguments by position; the inputs stay in their order.

    Raises:
        ValueError: If the function can't be called in this way.

    Example:
        >>> import torch
        >>> samples = Samples((torch.ones(2, 3),), None, (), {"mask": "m"}, ("x",))
        >>> by_position(samples, lambda x, scale=1, mask=None: x).additional_forward_args
        (1, 'm')
    """
    if samples.names is None and not samples.additional_forward_kwargs:
        return samples
    parameters = inspect.signature(getattr(forward, "forward", forward)).parameters.values()
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names, further = samples.names or (), dict(samples.additional_forward_kwargs)
    count = len(samples.inputs) + len(samples.additional_forward_args)
    known = [p.name for p in places]
    order = [name for name in names if name in known]
    fits = len(places) >= count and (not order or order == known[: len(names)])
    arguments = []
    for parameter in places[count:]:
        if not further:
            break
        fits = fits and (parameter.name in further or parameter.default is not parameter.empty)
        arguments.append(further.pop(parameter.name, parameter.default))
    if not fits or further:
        wanted = ", ".join([*names, *samples.additional_forward_kwargs])
        raise ValueError(
            f"This method passes its arguments by position: ({wanted}), the explained inputs "
            f"first. The model's forward doesn't take them so, its parameters are "
            f"({', '.join(map(str, parameters))}). Create the method with a function that does: "
            f"lambda module: Saliency(lambda {wanted}: module("
            f"{', '.join(f'{name}={name}' for name in wanted.split(', '))}))."
        )
    return replace(
        samples,
        additional_forward_args=(*samples.additional_forward_args, *arguments),
        additional_forward_kwargs={},
        names=None,
    )
