"""Copies of a model whose layers are randomised."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from captum_transformer.calling import generators
from captum_transformer.errors import InvalidInputError
from captum_transformer.trace.functions import describe
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.nested import leaves

Order = Literal["cascading", "independent"]


def layers_from_the_top(model: nn.Module, run: Callable[[nn.Module], object]) -> list[str]:
    """Returns the modules whose own parameters are used in a run, in reverse order of first use.

    Args:
        model: The model; a copy of it runs.
        run: A function that runs the copy that it is given.

    Returns:
        The modules' names.

    Raises:
        InvalidInputError: If no parameter of the copy was used.
    """
    observed = copy.deepcopy(model)
    with _ParameterUse() as use:
        run(observed)
    places = {}
    for name, module in observed.named_modules():
        own = [use.places[id(p)] for p in module.parameters(recurse=False) if id(p) in use.places]
        if own:
            places[name] = min(own)
    if not places:
        raise InvalidInputError(
            "`explain` did not use the parameters of the model that was passed to it. The layers "
            "of that model are randomised one after the other, so create the method inside "
            "`explain`, as in "
            "`lambda model: AttnLRP(model).attribute(images, target=3)`."
        )
    return sorted(places, key=places.__getitem__, reverse=True)


def randomised(
    model: nn.Module, layers: Sequence[str], *, order: Order, seed: int, whole: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Yields copies of a model, each with one more layer, or with a different layer, randomised.

    Args:
        model: The model, which is left unchanged.
        layers: Names of modules.
        order: Whether layers stay randomised (``"cascading"``) or not (``"independent"``).
        seed: The seed of the random weights. A layer gets the same weights in either order.
        whole: Whether to randomise everything in a module, or only its own parameters.

    Yields:
        A layer's name, and the copy in which it is randomised; with ``"cascading"``, the same copy
        each time.

    Raises:
        InvalidInputError: If a layer doesn't exist or has no parameters.
    """
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules or not any(True for _ in modules[name].parameters()):
            raise InvalidInputError(
                f"The model has no layer {name!r} with parameters. Name modules as "
                f"`model.named_modules()` does, such as {[n for n in modules if n][:4]}."
            )
    changed = copy.deepcopy(model)
    for name in layers:
        if order == "independent":
            changed = copy.deepcopy(model)
        randomise(changed.get_submodule(name), seed + list(modules).index(name), whole=whole)
        yield name, changed


def randomise(module: nn.Module, seed: int, *, whole: bool = True) -> None:
    """Replaces the learned parameters of a module by random values, in place.

    Modules with ``reset_parameters`` are initialised again; the parameters of all others are
    permuted, each separately. The random state is restored.

    Args:
        module: The module.
        seed: The seed of the random values.
        whole: Whether to randomise everything in the module, or only its own parameters.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> learned = layer.weight.clone()
        >>> randomise(layer, seed=0)
        >>> bool((layer.weight == learned).any())
        False
    """
    devices = {parameter.device for parameter in module.parameters()}
    with torch.no_grad(), generators.kept(devices):
        generators.seed(devices, seed)
        for part in module.modules() if whole else [module]:
            own = list(part.parameters(recurse=False))
            reset = getattr(part, "reset_parameters", None)
            if own and callable(reset):
                reset()
            else:
                for parameter in own:
                    order = torch.randperm(parameter.numel()).to(parameter.device)
                    parameter.copy_(parameter.flatten()[order].view_as(parameter))


class _ParameterUse(TorchFunctionMode):
    """Records the order in which parameters are used; reading a shape or type doesn't count.

    Attributes:
        places: The position of each tensor's first use, by the ``id`` of the tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[int, int] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if describe(func).kind is not Kind.ASKS:
            for tensor in leaves(nn.Parameter, (args, kwargs or {})):
                self.places.setdefault(id(tensor), len(self.places))
        return func(*args, **(kwargs or {}))
