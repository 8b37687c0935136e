"""A lock that lets only one run at a time write into a folder."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from pathlib import Path

from lightning_callbacks.shared.flavors import MisconfigurationException

_FILE = ".lock"
_BEHIND = 1 << 20
_held: set[Path] = set()


class FolderLock:
    """Keeps other runs from writing into a folder until it is released, or its process ends.

    The operating system releases it if the process is killed, so no cleanup is needed.

    Args:
        folder: The folder, which is created if it doesn't exist.

    Raises:
        MisconfigurationException: If another run holds the lock.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     lock = FolderLock(Path(folder))
        ...     try:
        ...         FolderLock(Path(folder))
        ...     except MisconfigurationException:
        ...         print("taken")
        ...     lock.release()
        taken
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.resolve()
        # The system's lock belongs to the process, so it doesn't exclude another thread.
        if self._folder in _held:
            raise _refusal(folder, f"another trainer of this process, {os.getpid()}")
        self._descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(self._descriptor, folder)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BaseException:
            os.close(self._descriptor)
            raise
        _held.add(self._folder)

    def release(self) -> None:
        """Releases the lock; it may be called twice."""
        if self._folder in _held:
            _held.discard(self._folder)
            os.close(self._descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        _lock_of_system(descriptor)
    except (BlockingIOError, PermissionError) as error:
        owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
        raise _refusal(folder, owner) from error
    except (OSError, ImportError) as error:
        warnings.warn(
            f"{folder} can't be locked ({error}), so another run could write into it at the same "
            "time. Make sure that none does.",
            stacklevel=4,
        )


def _lock_of_system(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        # Windows lets nobody else read a locked byte, so the owner is written before that byte.
        os.lseek(descriptor, _BEHIND, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        # This kind of lock isn't inherited by forked processes, such as a loader's workers.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _refusal(folder: Path, owner: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"Another run writes into {folder}: {owner}. Wait until it has ended, or take another "
        "folder."
    )
