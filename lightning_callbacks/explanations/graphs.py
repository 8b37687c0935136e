"""Captures the calls that compute explanations, if they are repeated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from captum_transformer import TransformerMethod
from captum_transformer.captured import Repeated
from captum_transformer.captured.call import Of
from lightning_callbacks.explanations.explained_model import Called

_ATOMS = (bool, int, float, str, bytes, type(None))
# The number of methods whose graphs are kept.
_METHODS = 16


class Graphs:
    """Captures calls of methods when they are made for the second time.

    Methods may be created again for each run: a method with the same class, model and options as
    an earlier one counts as the same.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import AttnLRP
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
        >>> graphs = Graphs()
        >>> for _ in range(3):
        ...     attribute = graphs.of(AttnLRP(model), "attribute", {})
        ...     maps = attribute(torch.rand(2, 3, 32, 32), torch.tensor([3, 5]))
        >>> maps.shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self) -> None:
        self._kept: list[tuple[TransformerMethod, dict[Any, Repeated]]] = []
        self._said = False

    def of(
        self,
        method: TransformerMethod,
        of: Of,
        options: Mapping[str, Any],
    ) -> Callable[..., Any]:
        """Returns a method's call, which is replayed from a graph if it has been made before.

        Args:
            method: The method.
            of: The name of the call.
            options: Further arguments of the call.

        Returns:
            A function with the arguments of the call.
        """
        calls = next((calls for kept, calls in self._kept if _alike(kept, method)), None)
        if calls is None:
            calls = {}
            self._kept = [*self._kept[1 - _METHODS :], (method, calls)]
        key = of, *sorted(options.items())
        if key not in calls:
            calls[key] = Repeated(method, of, self._say, options)
        return calls[key]

    def _say(self, why: str) -> None:
        if not self._said:
            self._said = True
            warnings.warn(f"Explanations run uncaptured: {why}", stacklevel=2)

    def __reduce__(self) -> Any:
        # Graphs hold a model, and are only valid in this process.
        return Graphs, ()


def _alike(one: Any, other: Any) -> bool:
    """Returns whether two methods, or values of their attributes, are equivalent."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _ATOMS):
        return bool(one == other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and _alike(list(one.values()), list(other.values()))
    if isinstance(one, partial):
        held = ((each.func, each.args, each.keywords) for each in (one, other))
        return _alike(*held)
    if isinstance(one, Called):
        return one.model is other.model and one.function is other.function
    return isinstance(one, TransformerMethod) and _alike(vars(one), vars(other))
