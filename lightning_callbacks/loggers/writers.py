"""Which of a trainer's loggers take images, and what to do if none does."""

from collections.abc import Sequence
from typing import Any

from captum_transformer.visualization.tensorboard import ImageWriter
from lightning_callbacks.loggers.png import PNGWriter


def image_writers(loggers: Sequence[Any], default_folder: str) -> list[ImageWriter]:
    """Finds where the pictures go.

    They go to every logger whose ``experiment`` has ``add_image``, as TensorBoard's has. If there
    is none, they become PNG files in the folder of the first logger.

    Args:
        loggers: The trainer's loggers.
        default_folder: The folder for PNG files if the first logger names none.

    Returns:
        At least one writer.
    """
    experiments: list[Any] = [getattr(logger, "experiment", None) for logger in loggers]
    writers: list[ImageWriter] = [
        experiment for experiment in experiments if callable(getattr(experiment, "add_image", None))
    ]
    return writers or [PNGWriter(_folder(loggers[0]) or default_folder)]


def _folder(logger: Any) -> str | None:
    """What the logger itself says; `Trainer.log_dir` is a collective operation."""
    for name in ("log_dir", "save_dir"):
        folder = getattr(logger, name, None)
        if isinstance(folder, str) and folder:
            return folder
    return None
