"""TensorBoard, and all loggers whose experiment has the interface of SummaryWriter.

A ``SummaryWriter`` hands everything to a thread. If that can't write, because the disk is full, it
ends, and each later call raises the thread's error, those of the training included. So nothing is
handed over where there is no room for it, and what has failed all the same is taken back.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def tensorboard_writer(logger: Any) -> Any:
    """The logger's own SummaryWriter.

    Args:
        logger: Any logger.

    Returns:
        Its ``experiment``, or None if that has no ``add_image``.
    """
    experiment = getattr(logger, "experiment", None)
    return experiment if callable(getattr(experiment, "add_image", None)) else None


@contextmanager
def as_before_if_it_fails(writer: Any, size: int) -> Iterator[None]:
    """Keeps a ``SummaryWriter`` usable even if the body fails to write with it.

    Args:
        writer: A ``SummaryWriter``. Any other is only passed by.
        size: As many bytes as the body may write at most.

    Raises:
        OSError: If there is no room, before the body has run, or if it couldn't be written.
    """
    if not _is_summary_writer(writer):
        yield
        return
    writer.flush()
    before = _files_of(writer)
    if _is_local(writer) and (free := shutil.disk_usage(writer.log_dir).free) < 2 * size:
        raise OSError(
            f"the disk of {writer.log_dir} has {free} bytes left, which the training may need"
        )
    try:
        yield
        # What the thread couldn't write it says now, and not to the training.
        writer.flush()
    except BaseException:
        try:
            writer.flush()
        except Exception:
            _reopen(writer, before)
        raise


def add_charts(writer: Any, layout: Mapping[str, Any], name: str) -> None:
    """Lays out charts on TensorBoard's page for custom scalars, beside those of others.

    A run has one layout, which the last writer of it replaces, and the page joins those of all
    runs. So this one belongs to a run of its own, in which there is nothing else.

    Args:
        writer: A ``SummaryWriter``. Any other is left alone.
        layout: As for its ``add_custom_scalars``.
        name: The name of the run, below that of the writer.
    """
    if _is_summary_writer(writer):
        from torch.utils.tensorboard import SummaryWriter

        # A path of a remote file system has slashes, too.
        with SummaryWriter(f"{writer.log_dir}/{name}") as charts:
            charts.add_custom_scalars(layout)


def _reopen(writer: Any, before: Mapping[Path, int]) -> None:
    """Gives up a writer's file where its thread has ended, and what it has written last."""
    with suppress(Exception):
        # Not through the writer, whose own way to close begins with a flush, which raises.
        writer.file_writer.event_writer.close()
    for path in before:
        # The room is the training's again.
        with suppress(OSError):
            os.truncate(path, before[path])
    # With these it opens another file of the same run when it is used again.
    writer.file_writer = writer.all_writers = None


def _is_summary_writer(writer: Any) -> bool:
    # Without an import of its own, for TensorBoard need not be installed.
    module = sys.modules.get("torch.utils.tensorboard")
    return module is not None and isinstance(writer, module.SummaryWriter)


def _is_local(writer: Any) -> bool:
    return "://" not in str(writer.log_dir)


def _files_of(writer: Any) -> dict[Path, int]:
    """The files of this process in the writer's folder and their sizes, if it is a local one."""
    if not _is_local(writer):
        return {}
    paths = Path(writer.log_dir).glob(f"events.out.tfevents.*.{os.getpid()}.*")
    return {path: path.stat().st_size for path in paths}
