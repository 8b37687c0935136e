"""Helpers for devices, of any kind, that have no memory left."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that a device, or the host, had no memory left.

    >>> is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 7 GB)"))
    True
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The allocators of the CPU and of Apple's GPUs raise a plain error with these words.
    words = "out of memory", "can't allocate memory"
    return isinstance(error, RuntimeError) and any(part in str(error) for part in words)


def give_back_cached() -> None:
    """Releases the accelerator's memory that PyTorch holds without using it.

    >>> give_back_cached()
    """
    empty = getattr(torch.get_device_module(), "empty_cache", None)
    if empty is not None:
        empty()
