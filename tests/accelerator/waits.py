"""How often the host waits for a device, a real one or the emulated one."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator

import torch

from tests.accelerator.module import NAME, reads


@contextlib.contextmanager
def waits(device: torch.device) -> Iterator[Counter[str]]:
    """Counts copies to the host, and numbers that it has to know to go on.

    Args:
        device: The emulated accelerator, or a CUDA device, which warns of them.

    Yields:
        How often, by what asked; filled when the body ends.
    """
    if device.type == NAME:
        with reads() as found:
            yield found
        return
    found = Counter[str]()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    found.update(
        f"{warning.filename}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )
