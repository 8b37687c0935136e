"""The device that is measured, whatever kind it is."""

import torch


def best_device() -> torch.device:
    """The accelerator, if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def device_name(device: torch.device) -> str:
    """What a device calls itself, such as the name of a card."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type.upper() if name is None else str(name(device))


def wait() -> None:
    """Waits until the accelerator, if there is one, has done what it was given."""
    if torch.accelerator.is_available():
        torch.get_device_module().synchronize()
