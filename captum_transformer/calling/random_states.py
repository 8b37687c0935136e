"""Random generators: the global ones, and those that a model owns."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from captum_transformer.calling import generators, reading


def stands_at(generator: Any) -> Any:
    """Returns the state of a generator of PyTorch, NumPy or Python.

    Args:
        generator: any object.

    Returns:
        A copy of its state, or None if the object is not a generator.

    Example:
        >>> generator = random.Random(0)
        >>> before, draw = stands_at(generator), generator.random()
        >>> go_back(generator, before)
        >>> generator.random() == draw
        True
    """
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.BitGenerator):
        return generator.state
    return generator.getstate() if isinstance(generator, random.Random) else None


def go_back(generator: Any, state: Any) -> None:
    """Restores the state of a generator.

    Args:
        generator: the generator.
        state: the state that `stands_at` has returned.
    """
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = state
    else:
        generator.setstate(state)


@contextmanager
def random_state(
    devices: set[torch.device],
    seed: int | None = None,
    drew: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Restores the generators of PyTorch (CPU and devices), Python and NumPy on exit.

    A generator that has not been drawn from is not touched, as another thread may be about to draw
    from it.

    Args:
        devices: The devices in use.
        seed: The seed of the generators; None to leave them where they are.
        drew: Returns on exit whether PyTorch's generator of the CPU was drawn from in the context;
            if not, another thread drew from it.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.inference_mode(mode=False):
        states = generators.states_of(devices)
    cpu = states.pop(torch.device("cpu"))
    try:
        if seed is not None:
            generators.seed(devices, seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        with torch.inference_mode(mode=False):
            generators.put_back(states)
            if drew() and not reading.is_same(torch.get_rng_state(), cpu):
                torch.set_rng_state(cpu)
        if random.getstate() != python:
            random.setstate(python)
        if _differs(np.random.get_state(), numpy):  # noqa: NPY002
            np.random.set_state(numpy)  # noqa: NPY002


def _differs(now: Any, before: Any) -> bool:
    return bool(now[2:] != before[2:] or now[1].tobytes() != before[1].tobytes())
