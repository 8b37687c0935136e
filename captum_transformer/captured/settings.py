"""PyTorch's global state, as far as it decides which operations run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules import module as _module

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
    }


def _is_own(hook: Any) -> bool:
    """Returns whether a hook is the library's, which only puts modules into evaluation mode."""
    return str(getattr(hook, "__module__", "")).startswith("captum_transformer.")
