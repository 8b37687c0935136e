"""Finds the loggers that accept images, and writes PNG files if there is none."""

from collections.abc import Callable, Sequence
from typing import Any

from captum_transformer.visualization.tensorboard import ImageWriter
from lightning_callbacks.loggers.mlflow import mlflow_writer
from lightning_callbacks.loggers.png import PNGWriter
from lightning_callbacks.loggers.tensorboard import tensorboard_writer
from lightning_callbacks.loggers.wandb import wandb_writer

ADAPTERS: list[Callable[[Any], ImageWriter | None]] = [
    tensorboard_writer,
    wandb_writer,
    mlflow_writer,
]
"""Each creates a writer for the loggers that it supports, and returns None for the others."""


def image_writers(loggers: Sequence[Any], default_folder: str) -> list[ImageWriter]:
    """Returns the writers for the pictures.

    Pictures are written to every logger that one of `ADAPTERS` supports. If there is none, they are
    written as PNG files to the folder of the first logger.

    Args:
        loggers: The trainer's loggers.
        default_folder: The folder for PNG files if the first logger has none.

    Returns:
        At least one writer.
    """
    writers = [writer for logger in loggers if (writer := _writer(logger)) is not None]
    return writers or [PNGWriter(_folder(loggers[0]) or default_folder)]


def _writer(logger: Any) -> ImageWriter | None:
    return next((writer for adapt in ADAPTERS if (writer := adapt(logger)) is not None), None)


def _folder(logger: Any) -> str | None:
    """Returns the logger's own folder; `Trainer.log_dir` would be a collective operation."""
    for name in ("log_dir", "save_dir"):
        folder = getattr(logger, name, None)
        if isinstance(folder, str) and folder:
            return folder
    return None
