"""Runs something on a module such that its training can't tell."""

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(
    module: nn.Module, forward_context: AbstractContextManager[None], *, seed: int = 0
) -> Iterator[None]:
    """`isolated`, with gradients even within inference mode, and without compiling anything.

    A compiled module is run as it was before: compiling it anew for the shapes and the modes of an
    explanation would use up the number of times that PyTorch compiles a function, and the training
    would go on in other kernels.

    Args:
        module: The module.
        forward_context: What a forward pass happens in, such as autocasting.
        seed: Where the generators start.

    Example:
        >>> from contextlib import nullcontext
        >>> with torch.inference_mode(), undisturbed(torch.nn.Dropout(), nullcontext()):
        ...     torch.is_grad_enabled()
        True
    """
    with (
        isolated(module, seed=seed),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        forward_context,
    ):
        yield


@contextmanager
def isolated(module: nn.Module, *, seed: int = 0) -> Iterator[None]:
    """Evaluates a module and leaves no trace, whether or not the body raises.

    Inside, every submodule is in evaluation mode, no parameter has a gradient, and the random
    number generators of PyTorch (CPU and the module's devices), Python and NumPy start at `seed`.
    On the way out each submodule's mode, the gradients (the same tensors, for they accumulate),
    the buffers, other attributes such as counters and caches, and the generators are what they were
    before.

    Args:
        module: The module.
        seed: Where the generators start.

    Example:
        >>> layer = torch.nn.Dropout().train()
        >>> with isolated(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    with ExitStack() as stack:
        stack.enter_context(_random_state(module, seed))
        stack.enter_context(_buffers(module))
        stack.enter_context(_attributes(module))
        stack.enter_context(_gradients(module))
        stack.enter_context(_evaluation_mode(module))
        yield


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    # The attribute and not `eval()` and `train()`: these may be overridden with side effects, and
    # a module may keep a frozen part in evaluation mode on purpose.
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _gradients(module: nn.Module) -> Iterator[None]:
    # A method that calls `backward` would otherwise add to what the optimizer is about to use.
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _buffers(module: nn.Module) -> Iterator[None]:
    with torch.inference_mode(mode=False):
        # Inference tensors can't be written to; a module makes them itself, as a cache.
        saved = [
            (part, name, buffer, buffer.detach().clone())
            for part in module.modules()
            for name, buffer in part.named_buffers(recurse=False)
            if not buffer.is_inference()
        ]
    try:
        yield
    finally:
        with torch.inference_mode(mode=False), torch.no_grad():
            for part, name, buffer, values in saved:
                # By value: batch normalisation doesn't count its writes in the version.
                if not torch.equal(buffer, values):
                    buffer.copy_(values)
                setattr(part, name, buffer)


# What the others see to, and what no forward pass changes.
_OTHERS = frozenset({"training", "_parameters", "_buffers", "_modules"})


@contextmanager
def _attributes(module: nn.Module) -> Iterator[None]:
    # A module may count, or keep what it has computed, in attributes that are no buffers.
    with torch.inference_mode(mode=False):
        saved = [(part, _own(part), _contents(part)) for part in module.modules()]
    try:
        yield
    finally:
        with torch.inference_mode(mode=False), torch.no_grad():
            for part, attributes, contents in saved:
                _restore(part, attributes, contents)


def _own(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _OTHERS}


def _contents(part: nn.Module) -> dict[str, Any]:
    """Copies of what may be changed in its place."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value.copy()
        for name, value in _own(part).items()
        if type(value) in (dict, OrderedDict, list, set)
        or (isinstance(value, Tensor) and not value.is_inference())
    }


def _restore(part: nn.Module, attributes: dict[str, Any], contents: dict[str, Any]) -> None:
    current = vars(part)
    for name in _own(part).keys() - attributes.keys():
        del current[name]
    for name, value in attributes.items():
        # Not `setattr`, and only what has changed: compiled code watches its modules.
        if current.get(name) is not value:
            current[name] = value
    for name, content in contents.items():
        value = attributes[name]
        if isinstance(value, Tensor):
            if not torch.equal(value, content):
                value.copy_(content)
        elif isinstance(value, list):
            value[:] = content
        elif value or content:
            value.clear()
            value.update(content)


@contextmanager
def _random_state(module: nn.Module, seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = {parameter.device for parameter in module.parameters()} - {torch.device("cpu")}
    try:
        with ExitStack() as stack, torch.inference_mode(mode=False):
            stack.enter_context(torch.random.fork_rng(devices=[]))
            # Not torch.manual_seed: it seeds the generators of all devices, and those that are not
            # in use yet can't be restored.
            torch.default_generator.manual_seed(seed)
            for device in devices:
                stack.enter_context(torch.random.fork_rng([device], device_type=device.type))
                _seed_device(device, seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _seed_device(device: torch.device, seed: int) -> None:
    backend = torch.get_device_module(device)
    if device.index is None:
        backend.manual_seed(seed)
    else:
        with backend.device(device.index):
            backend.manual_seed(seed)
