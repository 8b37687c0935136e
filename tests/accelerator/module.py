"""What PyTorch asks a device for: its memory, its random numbers, and who waits for it."""

import collections
import contextlib
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAME = "emulated"
_OURS = {"emulated", "module"}


class Memory:
    """The numbers of a storage.

    Attributes:
        numbers: Where they are.
        allocated: How many bytes there are now in all storages.
        peak: How many there were at most.
        limit: How many there may be.
    """

    allocated = peak = 0
    limit: int | None = None

    def __init__(self, numbers: torch.UntypedStorage) -> None:
        self._size = 0
        size = numbers.nbytes()
        if Memory.limit is not None and Memory.allocated + size > Memory.limit:
            raise torch.OutOfMemoryError(f"The emulated accelerator has no {size} bytes left.")
        self.numbers, self._size = numbers, size
        Memory.allocated += size
        Memory.peak = max(Memory.peak, Memory.allocated)

    def __del__(self) -> None:
        Memory.allocated -= self._size


class _Module:
    """What stands at ``torch.emulated``, as ``torch.cuda`` does."""

    def __init__(self) -> None:
        self._state = torch.Generator().get_state()
        self._lock = threading.Lock()
        self.has_double = True

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def device_count(self) -> int:
        return 1

    def device(self, device: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def get_device_name(self, device: Any = None) -> str:
        return "emulated accelerator"

    def synchronize(self, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed(self, seed: int) -> None:
        self._state = torch.Generator().manual_seed(seed).get_state()

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = NAME) -> Tensor:
        return self._state.clone()

    def set_rng_state(self, state: Tensor, device: Any = NAME) -> None:
        self._state = state.clone()

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """What draws random numbers, on the CPU, draws those of the accelerator."""
        with self._lock:
            held = torch.default_generator.get_state()
            torch.default_generator.set_state(self._state)
            try:
                yield
            finally:
                self._state = torch.default_generator.get_state()
                torch.default_generator.set_state(held)

    def empty_cache(self) -> None:
        pass

    def memory_allocated(self, device: Any = None) -> int:
        return Memory.allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        return Memory.peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        Memory.peak = Memory.allocated


MODULE = _Module()
_reads: collections.Counter[str] = collections.Counter()


@contextlib.contextmanager
def reads() -> Iterator[collections.Counter[str]]:
    """Counts what the host waits for: copies to it, and numbers that decide how it goes on.

    Yields:
        How often, by operation and the line that asked; filled when the body ends.
    """
    _reads.clear()
    found: collections.Counter[str] = collections.Counter()
    try:
        yield found
    finally:
        found.update(_reads)


def note_read(name: str) -> None:
    frames = [f for f in traceback.extract_stack() if "torch" not in Path(f.filename).parts]
    asked = next((f for f in reversed(frames) if Path(f.filename).stem not in _OURS), None)
    where = (
        "" if asked is None else f" at {'/'.join(Path(asked.filename).parts[-2:])}:{asked.lineno}"
    )
    _reads[name + where] += 1
