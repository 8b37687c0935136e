"""PyTorch's random number generators: that of the CPU and those of any devices."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_CPU = torch.device("cpu")


def states_of(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """Returns the states of the generators of devices and of the CPU.

    Devices whose generators PyTorch can't access, such as TPUs, are left out.

    >>> states_of([torch.device("meta")]).keys()
    dict_keys([device(type='cpu')])
    """
    return {device: _read(device) for device in {_CPU, *devices} if _is_known(device)}


def put_back(states: Mapping[torch.device, Tensor]) -> None:
    """Restores the states of generators."""
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        elif device.type == "mps":
            torch.mps.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


def seed(devices: Iterable[torch.device], start: int) -> None:
    """Seeds the generators of devices and that of the CPU.

    It doesn't use `torch.manual_seed`, which seeds the generators of all devices: those that are
    not in use yet can't be restored.
    """
    for device in {_CPU, *devices}:
        if device.type == "cpu":
            torch.default_generator.manual_seed(start)
        elif device.type == "mps":
            torch.mps.manual_seed(start)
        elif _is_known(device):
            backend = torch.get_device_module(device)
            with backend.device(device):
                backend.manual_seed(start)


@contextmanager
def kept(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restores the generators of devices and of the CPU on exit.

    >>> with kept([]):
    ...     first = torch.rand(())
    >>> bool(torch.rand(()) == first)
    True
    """
    states = states_of(devices)
    try:
        yield
    finally:
        put_back(states)


def _read(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    if device.type == "mps":
        return torch.mps.get_rng_state()  # there is one, and its functions take no device
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _is_known(device: torch.device) -> bool:
    try:
        backend: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    except RuntimeError:
        return False
    return hasattr(backend, "set_rng_state")
