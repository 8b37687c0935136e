"""All state of a model, copied at once."""

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captum_transformer.calling.contents import (
    ATOMS,
    CONTAINERS,
    Contents,
    is_object,
    is_same,
    within,
)
from captum_transformer.calling.owners import Beside, of_class, reached_by
from captum_transformer.calling.random_states import go_back, stands_at
from captum_transformer.calling.state import State

LARGEST_ARRAY = 2**26
"""How many bytes an array of NumPy has at most of which a copy is made."""


class _Kept(NamedTuple):
    """A parameter and its attributes, without its values."""

    parameter: nn.Parameter
    requires_grad: bool
    gradient: Tensor | None
    data: Tensor | None


class CompleteState(State):
    """The state of a model and of what it leads to, for callers that can't announce writes into it.

    In addition to what `State` keeps, it keeps the parameters' ``requires_grad``, gradients,
    precision and device, the modules' modes, and which parameters and submodules there are;
    generators and arrays of NumPy; objects of any class, and the modules' classes themselves; and
    modules that are not submodules. Objects beside the model are left alone, see `Beside`.

    Args:
        model: the model.

    Attributes:
        changed: changes that `restore` has found in state that must not be changed.

    Example:
        >>> layer = nn.Linear(2, 2).eval()
        >>> state = CompleteState(layer)
        >>> _ = layer.double().requires_grad_(False)
        >>> state.restore()
        >>> layer.weight.dtype, layer.weight.requires_grad
        (torch.float32, True)
        >>> state.changed
        ['requires_grad of 2 parameters', 'the precision or device of 2 parameters']
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.changed: list[str] = []
        parts = list(model.modules())
        self._beside = Beside(parts)
        self._modes: list[tuple[nn.Module, bool]] = []
        self._kept: dict[int, _Kept] = {}
        self._structure: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._generators: list[tuple[Any, Any]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._classes: list[tuple[type, dict[str, Any]]] = []
        for part in parts:
            self.keep(part)

    def keep(self, module: nn.Module, *, within: bool = False) -> bool:
        """Records the state of a module.

        Args:
            module: the module.
            within: whether the module was found while the model runs.

        Returns:
            Whether the module has hooks of any kind.
        """
        held = vars(module)
        for name in ("_parameters", "_modules"):
            if name in held:
                self._structure.append((held[name], held[name].copy()))
        # The attribute and not `eval()` and `train()`: these may be overridden with side effects,
        # and a module may keep a frozen part in evaluation mode on purpose.
        self._modes.append((module, is_training(module)))
        for parameter in held.get("_parameters", {}).values():
            if parameter is not None and id(parameter) not in self._kept:
                self._kept[id(parameter)] = _Kept(
                    parameter, parameter.requires_grad, parameter.grad, _data_of(parameter)
                )
        for kind in type(module).__mro__:
            if id(kind) not in self._known:
                self._known.add(id(kind))
                self._keep_class(kind)
        return super().keep(module, within=within)

    def _keep_class(self, kind: type) -> None:
        if held := of_class(kind):
            self._classes.append((kind, held))
        for value in held.values():
            if type(value) not in ATOMS:
                self._keep(value)

    def evaluate(self) -> None:
        """Puts all modules into evaluation mode, and removes the gradients of all parameters."""
        for part, training in self._modes:
            if training:
                part.training = False
        # A method that calls `backward` would otherwise add to what the optimizer will use.
        for kept in self._kept.values():
            kept.parameter.grad = None

    def evaluate_unknown(self, module: nn.Module) -> None:
        """Keeps an unknown module that is called, and its parts, and evaluates them.

        Args:
            module: the module.
        """
        if id(module) in self.modules:
            return
        for part in list(module.modules()):
            if id(part) not in self.modules:
                self.keep(part, within=True)
                if is_training(part):
                    part.training = False

    def restore(self) -> None:
        """Restores all state, and records in `changed` what should not have been changed."""
        modes = [part for part, _ in self._modes if is_training(part)]
        for part, training in self._modes:
            if is_training(part) != training:
                part.training = training
        structure = 0
        for now, before in self._structure:
            if not is_same(now, before):
                now.clear()
                now.update(before)
                structure += 1
        self._restore_parameters()
        if modes:
            self.changed.append(f"the training mode of {len(modes)} modules")
        if structure:
            self.changed.append(f"parameters or submodules of {structure} modules")
        super().restore()
        for kind, held in self._classes:
            for name in of_class(kind).keys() - held.keys():
                delattr(kind, name)
            for name, value in held.items():
                if vars(kind).get(name) is not value:
                    setattr(kind, name, value)
        for generator, state in self._generators:
            go_back(generator, state)
        for array, values in self._arrays:
            if not np.array_equal(array, values):
                array[...] = values

    def _restore_parameters(self) -> None:
        flags = moved = 0
        for parameter, requires_grad, gradient, data in self._kept.values():
            if data is not None and _is_elsewhere(parameter, data):
                parameter.data = data
                moved += 1
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
                flags += 1
            if parameter.grad is not gradient:
                parameter.grad = gradient
        if flags:
            self.changed.append(f"requires_grad of {flags} parameters")
        if moved:
            self.changed.append(f"the precision or device of {moved} parameters")

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._keep_tensor(value)
        elif id(value) in self._known or self._keep_leaf(value):
            return
        elif inspect.isroutine(value) or isinstance(value, functools.partial):
            self._known.add(id(value))
            for _, part in reached_by(value):
                if type(part) not in ATOMS:
                    self._keep(part)
        else:
            super()._keep(value)

    def _keep_leaf(self, value: Any) -> bool:
        """Keeps a value and returns True if it is a module, a generator or an array."""
        if isinstance(value, nn.Module):
            for part in () if self._beside(value) else list(value.modules()):
                if id(part) not in self.modules:
                    self.keep(part)
        elif isinstance(value, np.ndarray):
            if value.nbytes <= LARGEST_ARRAY and value.flags.writeable:
                self._arrays.append((value, value.copy()))
        elif (state := stands_at(value)) is not None:
            self._generators.append((value, state))
        else:
            return False
        self._known.add(id(value))
        return True

    def _keep_object(self, value: Any) -> None:
        parts = within(value, self._beside)
        for part in parts or ():
            if isinstance(part, Tensor):
                self._keep_tensor(part)
            elif part is not value and id(part) in self._known:
                continue
            elif not self._keep_leaf(part):
                self._known.add(id(part))
                if isinstance(part, CONTAINERS) or is_object(part):
                    self._contents.append(Contents(part))

    def _keep_tensor(self, tensor: Tensor) -> None:
        # Inference tensors can't be written to; a module makes them itself, as a cache.
        if isinstance(tensor, nn.Parameter) or tensor.is_inference() or id(tensor) in self._known:
            return
        self._known.add(id(tensor))
        with torch.inference_mode(mode=False):
            self._copies.append((tensor, tensor.detach().clone()))


def is_training(module: nn.Module) -> bool:
    """Returns whether a module is in training mode; frozen scripted modules have no mode."""
    return getattr(module, "training", False)


def _data_of(parameter: Tensor) -> Tensor | None:
    """Returns an alias of a parameter's memory, or None if it has no memory of its own."""
    if type(parameter) is not nn.Parameter or parameter.layout is not torch.strided:
        return None
    return parameter.data


def _is_elsewhere(parameter: Tensor, data: Tensor) -> bool:
    return (
        parameter.data_ptr() != data.data_ptr()
        or parameter.dtype != data.dtype
        or parameter.device != data.device
        or parameter.shape != data.shape
    )
