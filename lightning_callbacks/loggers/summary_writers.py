"""Finds the ``SummaryWriter`` for the trainer of Transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments


def summary_writer(given: Any, args: TrainingArguments, run: str) -> Any:
    """Returns the ``SummaryWriter`` to log with.

    Args:
        given: A ``SummaryWriter``, a ``TensorBoardCallback`` that has one, or None for a new one.
        args: The trainer's arguments, which may have the folder of the logs.
        run: The name of the new writer's folder if the arguments have none.

    Raises:
        RuntimeError: If the ``TensorBoardCallback`` has no writer yet.
    """
    if isinstance(given, TrainerCallback):
        # Transformers' TensorBoardCallback opens a new writer for each training run.
        writer = getattr(given, "tb_writer", None)
        if writer is None:
            raise RuntimeError(
                "The TensorBoardCallback has no writer yet. Is it among the trainer's "
                "callbacks, before this one?"
            )
        return writer
    if given is not None:
        return given
    from torch.utils.tensorboard import SummaryWriter

    folder = getattr(args, "logging_dir", None) or os.getenv("TENSORBOARD_LOGGING_DIR")
    folder = folder or Path(str(args.output_dir), "runs", run)
    return SummaryWriter(str(Path(folder).expanduser()))


class AsLogger:
    """A ``SummaryWriter`` with the interface of a logger."""

    def __init__(self, writer: Any) -> None:
        self.experiment = writer

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers."""
        for tag, value in metrics.items():
            self.experiment.add_scalar(tag, value, step)
