"""What happens where a device has no memory left, whatever kind of device it is."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left.

    >>> is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 7 GB)"))
    True
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The allocators of the CPU and of Apple's GPUs say it in the words of a plain error.
    words = "out of memory", "can't allocate memory"
    return isinstance(error, RuntimeError) and any(part in str(error) for part in words)


def give_back_cached() -> None:
    """Gives back what PyTorch holds of the accelerator's memory without using it.

    >>> give_back_cached()
    """
    empty = getattr(torch.get_device_module(), "empty_cache", None)
    if empty is not None:
        empty()
