"""PyTorch's global state, as far as it decides which operations run."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules import module as _module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)


def settings(devices: Sequence[str]) -> dict[str, Any]:
    """Returns the parts of PyTorch's global state that decide which operations run."""
    cuda = torch.backends.cuda
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "autocast": {
            device: torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
            for device in devices
        },
        "the deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the kernels that attention may use": (
            cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
            cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
            cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
        ),
        "the hooks of all modules": tuple(
            hook
            for name in _GLOBAL_HOOKS
            for hook in getattr(_module, name).values()
            if not _is_own(hook)
        ),
        "the modes that torch's functions pass through": [type(mode).__name__ for mode in modes()],
    }


def modes() -> list[Any]:
    """Returns the modes that may change what torch's functions and operations do.

    That of the default device is not among them: what it does is known.
    """
    functions: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    every = [*functions, *_get_current_dispatch_mode_stack()]
    return [mode for mode in every if not isinstance(mode, DeviceContext)]


@contextmanager
def as_recorded(devices: Sequence[str]) -> Iterator[None]:
    """Lets recorded operations compute what they did when they were recorded.

    Args:
        devices: the types of device on which they run.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        for device in devices:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _is_own(hook: Any) -> bool:
    """Returns whether a hook is the library's, which only puts modules into evaluation mode."""
    return str(getattr(hook, "__module__", "")).startswith("captum_transformer.")
