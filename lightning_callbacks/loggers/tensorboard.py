"""Writes to TensorBoard, and to all loggers whose experiment has SummaryWriter's interface.

A ``SummaryWriter`` passes everything to a thread. If the thread can't write, because the disk is
full, it ends, and each later call raises its error, including the calls of the training itself. So
nothing is passed to it if there is too little space, and writes that still fail are undone.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from captum_transformer.visualization.canvas import Image
from lightning_callbacks.loggers.png import encoded


def tensorboard_writer(logger: Any) -> Any:
    """Returns the logger's own SummaryWriter.

    Args:
        logger: Any logger.

    Returns:
        The logger's ``experiment``, or None if that has no ``add_image``.
    """
    experiment = getattr(logger, "experiment", None)
    return experiment if callable(getattr(experiment, "add_image", None)) else None


def add_picture(writer: Any, tag: str, image: Image, step: int, **options: Any) -> None:
    """Adds a picture, which a ``SummaryWriter`` gets encoded: its own encoder takes twice the time.

    Args:
        writer: A ``SummaryWriter``, or any other writer with ``add_image``.
        tag: The picture's tag.
        image: A uint8 array ``(H, W, 3)``.
        step: Its step.
        **options: Further arguments of ``add_image``.
    """
    events = writer.file_writer if _is_summary_writer(writer) else None
    if events is None:
        writer.add_image(tag, image, step, dataformats="HWC", **options)
        return
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width, channels = image.shape
    picture = Summary.Image(
        height=height,
        width=width,
        colorspace=channels,
        encoded_image_string=encoded(image),
    )
    events.add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)


@contextmanager
def as_before_if_it_fails(writer: Any, size: int) -> Iterator[None]:
    """Keeps a ``SummaryWriter`` usable even if the body fails to write with it.

    Args:
        writer: A ``SummaryWriter``; nothing is done for any other writer.
        size: The most bytes that the body may write.

    Raises:
        OSError: If there is too little space, before the body runs, or if writing has failed.
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
        # The thread's error is raised here, and not in the training.
        writer.flush()
    except BaseException:
        try:
            writer.flush()
        except Exception:
            _reopen(writer, before)
        raise


def add_charts(writer: Any, layout: Mapping[str, Any], name: str) -> None:
    """Adds charts to TensorBoard's page for custom scalars, next to those of other writers.

    A run has only the layout that was written last, and the page joins the layouts of all runs. So
    this layout is written to a separate run, which has nothing else.

    Args:
        writer: A ``SummaryWriter``; nothing is done for any other writer.
        layout: The layout, as for ``add_custom_scalars``.
        name: The name of the run, relative to the writer's.
    """
    if _is_summary_writer(writer):
        from torch.utils.tensorboard import SummaryWriter

        # A path of a remote file system has slashes, too.
        with SummaryWriter(f"{writer.log_dir}/{name}") as charts:
            charts.add_custom_scalars(layout)


def _reopen(writer: Any, before: Mapping[Path, int]) -> None:
    """Closes a writer's file after its thread has ended, and removes what was written last."""
    with suppress(Exception):
        # Not by closing the writer, which begins with a flush, which raises.
        writer.file_writer.event_writer.close()
    for path in before:
        # The space is available to the training again.
        with suppress(OSError):
            os.truncate(path, before[path])
    # Without these, the writer opens another file of the same run when it is used again.
    writer.file_writer = writer.all_writers = None


def _is_summary_writer(writer: Any) -> bool:
    # Not imported here, since TensorBoard may not be installed.
    module = sys.modules.get("torch.utils.tensorboard")
    return module is not None and isinstance(writer, module.SummaryWriter)


def _is_local(writer: Any) -> bool:
    return "://" not in str(writer.log_dir)


def _files_of(writer: Any) -> dict[Path, int]:
    """Returns the sizes of this process's files in the writer's folder; empty if it is remote."""
    if not _is_local(writer):
        return {}
    paths = Path(writer.log_dir).glob(f"events.out.tfevents.*.{os.getpid()}.*")
    return {path: path.stat().st_size for path in paths}
