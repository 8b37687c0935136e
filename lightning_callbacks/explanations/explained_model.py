"""Which part of a module is explained, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from operator import attrgetter
from typing import Any, TypeAlias

from torch import nn

from lightning_callbacks.shared.flavors import MisconfigurationException

ModelOf: TypeAlias = str | Callable[[Any], nn.Module]
"""A dotted name of a submodule, or a function that returns it."""


class Called(nn.Module):
    """A model that is called with a function given by the user.

    Args:
        model: The model.
        function: Called with the model and the arguments that the model would be called with.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 3)
        >>> Called(model, lambda model, x: model(x)[:, :2])(torch.ones(1, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function
        self.training = False  # of this wrapper, which has nothing to train
        # As an attribute, since its signature has the names of the inputs.
        vars(self)["forward"] = partial(function, model)

    def get_submodule(self, target: str) -> nn.Module:
        """Returns a submodule of the model by its name in the model."""
        return self.model.get_submodule(target)


@dataclass(frozen=True)
class ExplainedModel:
    """The part of a module that is explained, and how it is called.

    Attributes:
        model: The submodule, or None for the module itself.
        forward: A function of this model and the inputs that returns the scores, or None to call
            the model itself.

    Example:
        >>> module = nn.Module()
        >>> module.net = nn.Linear(2, 3)
        >>> ExplainedModel("net").of(module)
        Linear(in_features=2, out_features=3, bias=True)
    """

    model: ModelOf | None = None
    forward: Callable[..., Any] | None = None

    def of(self, module: nn.Module) -> nn.Module:
        """Returns the model that is passed to the methods.

        Args:
            module: The trainer's module.

        Returns:
            A model that takes the inputs and returns the scores.

        Raises:
            MisconfigurationException: If there is no such submodule, or it has no forward.
        """
        model = self.part(module)
        if self.forward is not None:
            return Called(model, self.forward)
        if _has_forward(model):
            return model
        parts = ", ".join(repr(name) for name, _ in model.named_children()) or "none"
        raise MisconfigurationException(
            f"{type(model).__name__} has no forward of its own, so it can't be called with the "
            f"inputs. Choose one of its submodules ({parts}) as the model, e.g. model='net', or "
            "pass a function that computes the scores: forward=lambda module, x: module.net(x)."
        )

    def part(self, module: nn.Module) -> nn.Module:
        """Returns the part of a module that the names of `layers` refer to.

        Args:
            module: The trainer's module.

        Returns:
            The module or a submodule of it.

        Raises:
            MisconfigurationException: If there is no such submodule.
        """
        if self.model is None:
            return module
        if isinstance(self.model, str):
            try:
                found = attrgetter(self.model)(module)
            except AttributeError:
                known = [name for name, _ in module.named_modules() if name]
                near = get_close_matches(self.model, known, n=3)
                hint = f" Did you mean {', '.join(near)}?" if near else ""
                raise MisconfigurationException(
                    f"model={self.model!r}, but the {type(module).__name__} has no such submodule."
                    f"{hint}"
                ) from None
        else:
            found = self.model(module)
        if not isinstance(found, nn.Module):
            raise MisconfigurationException(
                f"model={self.model!r} is {type(found).__name__} of the {type(module).__name__}; "
                "it must be a torch.nn.Module."
            )
        return found


def _has_forward(model: nn.Module) -> bool:
    """Returns whether a model overrides the ``forward`` of its base class, which only raises."""
    function = getattr(model.forward, "__func__", model.forward)
    return getattr(function, "__qualname__", "") not in _UNIMPLEMENTED


_UNIMPLEMENTED = ("_forward_unimplemented", "LightningModule.forward")
