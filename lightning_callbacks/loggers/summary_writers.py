"""Where the trainer of Transformers logs to TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments


def summary_writer(given: Any, args: TrainingArguments, run: str) -> Any:
    """The ``SummaryWriter`` to log with.

    Args:
        given: One, a ``TensorBoardCallback`` that has one, or None for a new one.
        args: The trainer's arguments, which may say in which folder logs are.
        run: The folder of a new writer where they don't.

    Raises:
        RuntimeError: If the ``TensorBoardCallback`` has none yet.
    """
    if isinstance(given, TrainerCallback):
        # Transformers' TensorBoardCallback opens a new one for each training.
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
        """Writes numbers down."""
        for tag, value in metrics.items():
            self.experiment.add_scalar(tag, value, step)
