"""Leaving the user's model, its mode, its gradients and the random state exactly as they were."""

import functools
import inspect
import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from captum_transformer.calling.uncompiled import uncompiled

# The mode is put back by itself; parameters and submodules are not touched by running.
_TORCHS_OWN = frozenset(
    name for name in vars(nn.Module()) if name != "_buffers" and "_hooks" not in name
)


class Attributes:
    """Modules' own attributes, buffers and hooks, to be put back as they were.

    Some models install hooks when they first run and note down that they did: both have to go, or
    the next run would install them again. Some keep what they have computed in evaluation mode,
    such as position biases, for as long as they stay in it. As the mode is switched behind their
    back, they would go on using it after further training.

    Attributes:
        modules: those that are known, by their identity, and what they had.
    """

    def __init__(self) -> None:
        self.modules: dict[int, tuple[nn.Module, dict[str, Any]]] = {}
        self._filled: list[tuple[Any, Any]] = []
        self._hooks_within: list[tuple[Any, Any]] = []
        # Most containers are dictionaries of no hooks.
        self._empty: list[Any] = []

    def keep(self, module: nn.Module, *, within: bool = False) -> None:
        """Notes down a module's attributes as they are.

        Args:
            module: the module.
            within: whether the forward function is running already: then a hook may be its own,
                and is not put back if it is removed.
        """
        values = vars(module).copy()
        self.modules[id(module)] = module, values
        for name, value in values.items():
            if isinstance(value, (dict, list, set)) and name not in _TORCHS_OWN:
                if within and "_hooks" in name:
                    self._hooks_within.append((value, value.copy()))
                elif value:
                    self._filled.append((value, value.copy()))
                else:
                    self._empty.append(value)

    def restore(self) -> None:
        """Puts back what has changed; containers stay the same objects."""
        for module, values in self.modules.values():
            current = vars(module)
            same = current.keys() == values.keys()
            if same and all(map(operator.is_, current.values(), values.values())):
                continue
            for name in current.keys() - values.keys() - _TORCHS_OWN:
                del current[name]
            current.update({n: v for n, v in values.items() if n not in _TORCHS_OWN})
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


def modules_of(function: Any) -> list[tuple[str, nn.Module]]:
    """The modules that a forward function runs, as far as they can be found beforehand, by name.

    Looks into modules, bound methods, ``functools.partial``, callable objects, closures and the
    globals that a function names.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    _collect(function, "", found, set())
    return list(found.values())


def _collect(item: Any, name: str, found: dict[int, tuple[str, nn.Module]], seen: set[int]) -> None:
    if id(item) in seen:
        return
    seen.add(id(item))
    if isinstance(item, nn.Module):
        for path, module in item.named_modules(prefix=name):
            found.setdefault(id(module), (path, module))
    elif isinstance(item, functools.partial):
        for part in (item.func, *item.args, *item.keywords.values()):
            _collect(part, name, found, seen)
    elif inspect.ismethod(item):
        _collect(item.__self__, name, found, seen)
        _collect(item.__func__, name, found, seen)
        if not callable(item.__self__):
            _collect_attributes(item.__self__, found, seen)
    elif inspect.isfunction(item):
        _collect(getattr(item, "__wrapped__", None), name, found, seen)
        variables = inspect.getclosurevars(item)
        for key, part in (*variables.nonlocals.items(), *variables.globals.items()):
            if isinstance(part, (nn.Module, functools.partial)) or inspect.isroutine(part):
                _collect(part, key if isinstance(part, nn.Module) else name, found, seen)
            elif isinstance(part, (list, tuple, dict)):
                for piece in part.values() if isinstance(part, dict) else part:
                    if isinstance(piece, nn.Module):
                        _collect(piece, key, found, seen)
    elif callable(item) and not inspect.isclass(item):
        _collect_attributes(item, found, seen)


def _collect_attributes(item: Any, found: dict[int, tuple[str, nn.Module]], seen: set[int]) -> None:
    for key, part in getattr(item, "__dict__", {}).items():
        if isinstance(part, nn.Module) or inspect.ismethod(part):
            _collect(part, key, found, seen)


def _is_training(module: nn.Module) -> bool:
    # Frozen scripted modules have no mode any more.
    return getattr(module, "training", False)


@contextmanager
def explaining(modules: list[tuple[str, nn.Module]], tensors: list[Tensor]) -> Iterator[None]:
    """Everything a forward pass needs to be explained, undone on leaving, also after an error.

    Gradients are on, whatever the caller's mode; every module is in evaluation mode; what modules
    store in their attributes meanwhile, such as caches, is dropped, and so are hooks that they
    install; the random state is put back; compiled code runs uncompiled.
    """
    training = [module for _, module in modules if _is_training(module)]
    attributes = Attributes()
    for _, module in modules:
        attributes.keep(module)
    thread = get_ident()

    def evaluate(module: nn.Module, _: Any) -> None:
        # For modules that can't be found beforehand, such as those of an object in a closure.
        known = id(module) in attributes.modules
        if (known and not _is_training(module)) or get_ident() != thread:
            return
        if not known:
            attributes.keep(module, within=True)
        if _is_training(module):
            training.append(module)
            module.training = False

    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(uncompiled(module for _, module in modules))
        hook = register_module_forward_pre_hook(evaluate)
        try:
            for module in training:
                module.training = False
            yield
        finally:
            hook.remove()
            for module in training:
                module.training = True
            attributes.restore()


@contextmanager
def in_full_precision(device: torch.device) -> Iterator[None]:
    """Rules run outside autocast, so that relevance is summed up in float32 at least."""
    with torch.autocast(device.type, enabled=False):
        yield
