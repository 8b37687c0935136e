"""What modules hold besides parameters and submodules, to be put back as it was."""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, nn

# The mode is put back by itself; parameters and submodules are not touched by running.
_TORCHS_OWN = frozenset(
    name for name in vars(nn.Module()) if name != "_buffers" and "_hooks" not in name
)

_KEPT = (dict, list, set, tuple, Tensor)


class State:
    """Modules' own attributes, buffers and hooks, with what containers among them hold.

    Some models install hooks when they first run and note down that they did: both have to go, or
    the next run would install them again. Some keep what they have computed in evaluation mode,
    such as position biases, for as long as they stay in it. As the mode is switched behind their
    back, they would go on using it after further training. Some write into tensors of their own,
    such as the buffers of a cache.

    Args:
        by_value: copy the tensors at once, whatever may write into them. Otherwise someone has to
            announce each write, by `before_write`, and a tensor is copied just before.

    Attributes:
        modules: those that are known, by their identity, and what they had.
    """

    def __init__(self, *, by_value: bool = False) -> None:
        self.modules: dict[int, tuple[nn.Module, dict[str, Any]]] = {}
        self._by_value = by_value
        self._filled: list[tuple[Any, Any]] = []
        self._hooks_within: list[tuple[Any, Any]] = []
        # Most containers are dictionaries of no hooks.
        self._empty: list[Any] = []
        self._tensors: dict[int, list[Tensor]] = {}
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._known: set[int] = set()

    def keep(self, module: nn.Module, *, within: bool = False) -> None:
        """Notes down what a module holds.

        Args:
            module: the module.
            within: whether the forward function is running already: then a hook may be its own,
                and is not put back if it is removed.
        """
        values = vars(module).copy()
        self.modules[id(module)] = module, values
        for name, value in values.items():
            if not isinstance(value, _KEPT) or name in _TORCHS_OWN:
                continue
            if within and "_hooks" in name:
                self._hooks_within.append((value, copy.copy(value)))
            elif not isinstance(value, Tensor) and not value:
                self._empty.append(value)
            else:
                self._keep(value)

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._keep_tensor(value)
            return
        if not value:
            self._empty.append(value)
            return
        if id(value) in self._known:
            return
        self._known.add(id(value))
        if not isinstance(value, tuple):
            self._filled.append((value, value.copy()))
        for part in value.values() if isinstance(value, dict) else value:
            if isinstance(part, _KEPT):
                self._keep(part)

    def _keep_tensor(self, tensor: Tensor) -> None:
        # Inference tensors can't be written to; a module makes them itself, as a cache.
        if isinstance(tensor, nn.Parameter) or tensor.is_inference():
            return
        if self._by_value:
            self._copies.append((tensor, tensor.detach().clone()))
        elif _has_memory(tensor):
            self._tensors.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)

    def before_write(self, tensor: Tensor) -> None:
        """Copies the modules' tensors in whose memory a tensor lies that is about to be written."""
        if not self._tensors:
            return
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)  # under `torch.vmap`
        if _has_memory(tensor):
            for known in self._tensors.pop(tensor.untyped_storage()._cdata, ()):
                self._copies.append((known, known.detach().clone()))

    def restore(self) -> None:
        """Puts back what has changed; containers and tensors stay the same objects."""
        for module, held in self.modules.values():
            current = vars(module)
            same = current.keys() == held.keys()
            if same and all(map(operator.is_, current.values(), held.values())):
                continue
            for name in current.keys() - held.keys() - _TORCHS_OWN:
                del current[name]
            # Not `setattr`, and only what has changed: compiled code watches its modules.
            for name, value in held.items():
                if name not in _TORCHS_OWN and current.get(name) is not value:
                    current[name] = value
        for container in filter(None, self._empty):
            container.clear()
        for hooks, earlier in self._hooks_within:
            for key in hooks.keys() - earlier.keys():
                del hooks[key]
        for container, content in self._filled:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
        with torch.inference_mode(mode=False), torch.no_grad():
            for tensor, values in self._copies:
                _write_back(tensor, values)


def _write_back(tensor: Tensor, values: Tensor) -> None:
    if tensor.grad_fn is not None and not tensor._is_view():
        tensor.detach_()
    # By value: batch normalisation doesn't count its writes in the version.
    if not torch.equal(tensor, values):
        tensor.copy_(values)


def _has_memory(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided
