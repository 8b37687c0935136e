"""The state of modules besides the numbers of parameters, which is restored afterwards."""

import copy
import operator
from collections import deque
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer.calling import reading
from captum_transformer.calling.contents import (
    ATOMS,
    CONTAINERS,
    Contents,
    is_object,
    parts_of,
    within,
)

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = tuple(name for name in _OF_EVERY_MODULE if "_hooks" in name)
_hooks_of, _is = operator.itemgetter(*_HOOKS), operator.is_
# What a module registers may be in any of these, whatever it is registered for.
_REGISTERED = ("_buffers", "_parameters", "_modules")
# The mode is restored separately.
_UNTOUCHED = _OF_EVERY_MODULE - {*_REGISTERED, *_HOOKS}
_MISSING = object()
_CONTAINERS = (dict, list, set, tuple, deque)
_USUAL_PARAMETERS = frozenset({nn.Parameter, NoneType})


class State:
    """Modules' own attributes, buffers and hooks, with the contents of containers and objects.

    Models may register parameters and submodules when they run: a module that remembers which
    weight it has computed something from registers the weight a second time.

    Some models install hooks when they first run and record that they did: both have to be undone,
    or the next run would install them again. Some keep results that they compute in evaluation
    mode, such as position biases, for as long as they stay in it. As the mode is switched without
    their notice, they would still use them after further training. Some write into tensors of their
    own, such as the buffers of a cache, or into objects that hold tensors.

    Each write into a tensor has to be announced, by `before_write`, which copies the tensor.

    Attributes:
        modules: the known modules, by their identity, with their former attributes.
        drew: whether the generator of the CPU may have been drawn from; the caller sets it.
    """

    def __init__(self) -> None:
        self.modules: dict[int, tuple[nn.Module, dict[str, Any]]] = {}
        self.drew = True
        self._contents: list[Contents] = []
        self._objects: list[tuple[Any, list[Contents], bool]] = []
        self._hooks_within: list[tuple[Any, Any]] = []
        # Most containers are empty dictionaries of hooks.
        self._empty: list[Any] = []
        self._tensors: dict[int, list[Tensor]] = {}
        self._data: list[tuple[Tensor, Tensor]] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._known: set[int] = set()

    def keep(self, module: nn.Module, *, within: bool = False) -> bool:
        """Records the state of a module.

        Args:
            module: the module.
            within: whether the forward function is running already: then a hook may be its own,
                and is not restored if it is removed.

        Returns:
            Whether the module has hooks of any kind.
        """
        values = vars(module).copy()
        self.modules[id(module)] = module, values
        hooks, buffers = _hooks_of(values), values.get("_buffers", ())
        parameters, parts = values.get("_parameters", {}), values.get("_modules", {})
        has_hooks = any(hooks)
        if within:
            self._hooks_within += ((some, copy.copy(some)) for some in hooks)
        elif has_hooks:
            for some in hooks:
                self._keep(some)
        else:
            self._empty += hooks
        if buffers:
            self._keep(buffers)
        else:
            self._empty.append(buffers)
        special = False
        for parameter in parameters.values():
            if type(parameter) not in _USUAL_PARAMETERS:
                special = special or _is_of_torch(parameter)
                self._keep_parameter(parameter)
        for some in (parts,) if special else (parts, parameters):
            if some:
                self._contents.append(Contents(some))
            else:
                self._empty.append(some)
        for name in values.keys() - _OF_EVERY_MODULE:
            value = values[name]
            if type(value) not in ATOMS:
                self._keep(value)
        return has_hooks

    def _keep_parameter(self, parameter: Tensor) -> None:
        """Records the contents of parameters of a package's own class, such as quantised weights.

        When such a layer first runs, it may move their numbers to objects that the module holds.
        Parameters of torch's own classes are sharded, and are restored by what has sharded them.
        """
        if _is_of_torch(parameter):
            return
        self._contents.append(Contents(parameter))
        for value in vars(parameter).values():
            if type(value) not in ATOMS:
                self._keep(value)
        if type(data := parameter.data) is Tensor:
            self._data.append((parameter, data))

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._keep_tensor(value)
        elif isinstance(value, _CONTAINERS) and not value:
            self._empty.append(value)
        elif id(value) in self._known:
            return
        elif isinstance(value, _CONTAINERS):
            self._known.add(id(value))
            if not isinstance(value, tuple):
                self._contents.append(Contents(value))
            for part in parts_of(value):
                if type(part) not in ATOMS:
                    self._keep(part)
        elif is_object(value):
            self._known.add(id(value))
            self._keep_object(value)

    def _keep_object(self, value: Any) -> None:
        """Records an object, which is only restored if it holds tensors, now or afterwards."""
        parts = within(value)
        if parts is None:
            return
        tensors = [part for part in parts if isinstance(part, Tensor)]
        for tensor in tensors:
            self._keep_tensor(tensor)
        contents = [
            Contents(part) for part in parts if isinstance(part, CONTAINERS) or is_object(part)
        ]
        self._objects.append((value, contents, bool(tensors)))

    def _keep_tensor(self, tensor: Tensor) -> None:
        # Inference tensors can't be written to; a module makes them itself, as a cache.
        if isinstance(tensor, nn.Parameter) or tensor.is_inference():
            return
        if _has_memory(tensor):
            self._tensors.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)

    def note_draw(self) -> None:
        """Records that the model draws random numbers."""
        self.drew = True

    def before_write(self, tensor: Tensor) -> None:
        """Copies the modules' tensors that share memory with a tensor before it is written."""
        if not self._tensors:
            return
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)  # under `torch.vmap`
        if _has_memory(tensor):
            for known in self._tensors.pop(tensor.untyped_storage()._cdata, ()):
                self._copies.append((known, known.detach().clone()))

    def restore(self) -> None:
        """Restores what has changed; containers and tensors stay the same objects."""
        for module, held in self.modules.values():
            current = vars(module)
            if current.keys() == held.keys() and all(map(_is, current.values(), held.values())):
                continue
            for name in current.keys() - held.keys() - _UNTOUCHED:
                del current[name]
            # Not `setattr`, and only what has changed: compiled code watches its modules.
            for name, value in held.items():
                if name not in _UNTOUCHED and current.get(name, _MISSING) is not value:
                    current[name] = value
        for container in filter(None, self._empty):
            container.clear()
        for hooks, earlier in self._hooks_within:
            for key in hooks.keys() - earlier.keys():
                del hooks[key]
        for value, contents, has_tensors in self._objects:
            if has_tensors or any(isinstance(part, Tensor) for part in within(value) or ()):
                self._contents += contents
        for content in self._contents:
            content.put_back()
        for parameter, data in self._data:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        with torch.inference_mode(mode=False), torch.no_grad():
            for tensor, values in self._copies:
                _write_back(tensor, values)


def _is_of_torch(parameter: Tensor) -> bool:
    return type(parameter).__module__.partition(".")[0] == "torch"


def _write_back(tensor: Tensor, values: Tensor) -> None:
    if tensor.grad_fn is not None and not tensor._is_view():
        tensor.detach_()
    # By value: batch normalisation doesn't count its writes in the version.
    if not reading.is_same(tensor, values):
        tensor.copy_(values)


def _has_memory(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided
