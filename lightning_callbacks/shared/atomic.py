"""Files that are written atomically."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_SUFFIX = ".unfinished"


@contextmanager
def written(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Lets the body write a temporary file, and renames it when it is complete.

    Args:
        path: The path of the file. An existing file is replaced atomically.
        durable: Wait until the file would survive a power failure.

    Yields:
        The path that the body must write to.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}{_SUFFIX}")
    try:
        yield unfinished
        if durable:
            # Windows flushes only files that are open for writing.
            _flush(os.open(unfinished, os.O_RDWR))
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        _flush_folder(path.parent)


def remove_unfinished(folder: Path) -> int:
    """Removes temporary files of a process that was killed.

    Args:
        folder: The folder.

    Returns:
        The number of removed files.
    """
    found = list(folder.glob(f".*{_SUFFIX}"))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def _flush_folder(path: Path) -> None:
    """Flushes a folder, without which a new file's name may be lost."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders, and flushes names by itself
        return
    _flush(descriptor)


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
