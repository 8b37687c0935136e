"""Snapshots of a model, of tensors and of PyTorch's state, to assert that nothing has changed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _snapshot(value: Any) -> Any:
    """Returns something that is equal to an earlier snapshot only if the value is unchanged."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().clone().view(torch.uint8) if value.ndim else value.item()
        return (
            id(value),
            value.requires_grad,
            value.dtype,
            content.numpy().tobytes() if isinstance(content, Tensor) else content,
            None if not value.is_leaf or value.grad is None else _snapshot(value.grad),
        )
    if isinstance(value, dict):
        return id(value), {key: _snapshot(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value), [_snapshot(v) for v in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return id(value)


def state_of(model: nn.Module) -> dict[str, Any]:
    """A snapshot of all attributes of all modules."""
    return {name: _snapshot(vars(module)) for name, module in model.named_modules()}


def random_state() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy_state[0],
        numpy_state[1].tobytes(),
        numpy_state[2:],
    )


def modes_of_torch() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        len(torch.overrides._get_current_function_mode_stack()) == 0,
    )


@contextmanager
def unchanged(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """Asserts that everything is the same afterwards, even if the block raises."""
    before = state_of(model), _snapshot(list(tensors)), random_state(), modes_of_torch()
    try:
        yield
    finally:
        after = state_of(model), _snapshot(list(tensors)), random_state(), modes_of_torch()
        for old, new in zip(before, after, strict=True):
            assert old == new
