"""Leaves the user's model, its mode, its gradients and the random state exactly as they were."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from captum_transformer.calling.checkpointing import without_reentrant
from captum_transformer.calling.complete import CompleteState, is_training
from captum_transformer.calling.random_states import random_state
from captum_transformer.calling.state import State
from captum_transformer.calling.threads import OtherThreads
from captum_transformer.calling.uncompiled import uncompiled
from captum_transformer.errors import InvalidInputError


def modules_of(function: Any) -> list[tuple[str, nn.Module]]:
    """Returns the modules that a forward function runs, as far as they can be found, by name.

    Looks into modules, bound methods, ``functools.partial``, callable objects, closures and the
    globals that a function names.

    Raises:
        InvalidInputError: if the function can't be called, or creates a model, as a class does.
    """
    if isinstance(function, type) or not callable(function):
        given = f"the class {function.__name__}" if isinstance(function, type) else repr(function)
        raise InvalidInputError(
            f"`forward_func` is {given}; it must be a model, or a function that runs one."
        )
    found: dict[int, tuple[str, nn.Module]] = {}
    _collect(function, "", found, set())
    return list(found.values())


def _collect(item: Any, name: str, found: dict[int, tuple[str, nn.Module]], seen: set[int]) -> None:
    if id(item) in seen:
        return
    seen.add(id(item))
    if isinstance(item, nn.Module):
        _collect_parts(item, name, found)
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


def _collect_parts(module: nn.Module, name: str, found: dict[int, tuple[str, nn.Module]]) -> None:
    """Finds the same as `nn.Module.named_modules`, whose nested generators are slower."""
    if id(module) not in found:
        found[id(module)] = name, module
        for key, part in module._modules.items():  # noqa: SLF001
            if part is not None:
                _collect_parts(part, f"{name}.{key}" if name else key, found)


def _collect_attributes(item: Any, found: dict[int, tuple[str, nn.Module]], seen: set[int]) -> None:
    for key, part in getattr(item, "__dict__", {}).items():
        if isinstance(part, nn.Module) or inspect.ismethod(part):
            _collect(part, key, found, seen)


def _leave_out_backward_hooks(module: nn.Module) -> None:
    """Removes a module's backward hooks until its state is restored."""
    held = vars(module)
    for name in ("_backward_hooks", "_backward_pre_hooks"):
        if held.get(name):
            held[name] = OrderedDict()


@contextmanager
def explaining(modules: list[tuple[str, nn.Module]], tensors: list[Tensor]) -> Iterator[State]:
    """Sets up everything that explaining a forward pass needs; undone on exit, even after an error.

    Gradients are enabled, whatever the caller's mode; every module is in evaluation mode; what
    modules store in their attributes in the context, such as caches, is dropped, and so are hooks
    that they install; modules' backward hooks, which are for training and may change gradients,
    don't run; the random state is restored; compiled code runs uncompiled. The modules' modes are
    switched for all threads, and calls of a thread that trains the same model are refused.

    Yields:
        The state, which has to be told of writes into the modules' tensors before they happen.
    """
    training = [module for _, module in modules if is_training(module)]
    others = OtherThreads(training)
    state = State()
    for _, module in modules:
        if state.keep(module):
            _leave_out_backward_hooks(module)
    thread, known = get_ident(), state.modules

    def evaluate(module: nn.Module, _: Any) -> None:
        # For modules that can't be found beforehand, such as those of an object in a closure.
        if get_ident() != thread:
            others.refuse(module)
            return
        if id(module) not in known:
            # With its parts: it may put hooks on them before they are called.
            for part in module.modules():
                if id(part) not in known and state.keep(part, within=True):
                    _leave_out_backward_hooks(part)
        if is_training(module):
            training.append(module)
            module.training = False

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))  # which also enables threads again
        # The backward pass of other devices than the CPU would run a model's hooks in a thread
        # where nothing here sees them.
        stack.enter_context(torch.autograd.set_multithreading_enabled(mode=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(others)
        devices = {tensor.device for tensor in tensors}
        stack.enter_context(random_state(devices, drew=lambda: state.drew))
        stack.enter_context(uncompiled(module for _, module in modules))
        stack.enter_context(without_reentrant())
        hook = register_module_forward_pre_hook(evaluate)
        try:
            for module in training:
                module.training = False
            yield state
        finally:
            for module in training:
                module.training = True
            hook.remove()
            state.restore()


@contextmanager
def isolated(module: nn.Module, *, seed: int = 0) -> Iterator[CompleteState]:
    """Puts a module into evaluation mode and leaves no trace, even if the body raises.

    In the context, every submodule is in evaluation mode, no parameter has a gradient, and the
    random number generators of PyTorch (CPU and the module's devices), Python and NumPy start at
    `seed`. On exit each submodule's mode, the gradients (the same tensors, as they accumulate),
    parameters' ``requires_grad``, precision and device, the buffers, other attributes such as
    counters, caches, generators and arrays, and the global generators are what they were before.
    This also holds for modules that are called but are not submodules.

    Args:
        module: The module.
        seed: The seed of the generators.

    Yields:
        The state, whose `CompleteState.changed` lists afterwards what has been changed that
        explaining has no need to change.

    Example:
        >>> layer = torch.nn.Dropout().train()
        >>> with isolated(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    thread = get_ident()
    parts = list(module.modules())
    others = OtherThreads(part for part in parts if is_training(part))
    kept = (vars(part).get("_parameters", {}).values() for part in parts)
    devices = {parameter.device for held in kept for parameter in held if parameter is not None}
    with others, random_state(devices, seed):
        with torch.inference_mode(mode=False):
            state = CompleteState(module)

        def evaluate(called: nn.Module, _: Any) -> None:
            if get_ident() == thread:
                state.evaluate_unknown(called)
            else:
                others.refuse(called)

        hook = register_module_forward_pre_hook(evaluate)
        try:
            state.evaluate()
            yield state
        finally:
            try:
                state.restore()
            finally:
                hook.remove()


@contextmanager
def undisturbed(
    module: nn.Module, forward_context: AbstractContextManager[None], *, seed: int = 0
) -> Iterator[CompleteState]:
    """Does the same as `isolated`, with gradients even in inference mode, and without compiling.

    A compiled module runs uncompiled: compiling it again for the shapes and the modes of an
    explanation would use up the number of times that PyTorch compiles a function, and the training
    would continue in other kernels.

    Args:
        module: The module.
        forward_context: The context of a forward pass, such as autocast.
        seed: The seed of the generators.

    Yields:
        The state, as `isolated` does.

    Example:
        >>> from contextlib import nullcontext
        >>> with torch.inference_mode(), undisturbed(torch.nn.Dropout(), nullcontext()):
        ...     torch.is_grad_enabled()
        True
    """
    with (
        isolated(module, seed=seed) as state,
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        uncompiled(module.modules()),
        forward_context,
    ):
        yield state


@contextmanager
def in_full_precision(device: torch.device) -> Iterator[None]:
    """Disables autocast, so that rules sum up relevance in float32 at least."""
    with torch.autocast(device.type, enabled=False):
        yield
