"""Writes pictures and texts to MLflow."""

from typing import Any

from captum_transformer.visualization.canvas import Image
from lightning_callbacks.loggers.png import file_path


class MLFlowWriter:
    """Passes images and texts to an ``MLFlowLogger``.

    Images have a key and a step, so that MLflow's page has a slider for them; texts become
    artifacts under their tags.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def add_image(
        self,
        tag: str,
        img_tensor: Image,
        global_step: int | None = None,
        *,
        dataformats: str = "HWC",  # noqa: ARG002
    ) -> Any:
        """Logs an image ``(H, W, 3)``."""
        logger = self._logger
        logger.experiment.log_image(logger.run_id, img_tensor, key=tag, step=global_step or 0)

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> Any:
        """Logs a Markdown text."""
        path = file_path(tag, global_step or 0, ".md").as_posix()
        self._logger.experiment.log_text(self._logger.run_id, text_string, path)


def mlflow_writer(logger: Any) -> MLFlowWriter | None:
    """Creates a writer for loggers whose experiment has ``log_image`` and ``log_text`` for a run.

    Args:
        logger: Any logger.

    Returns:
        The writer, or None for other loggers.
    """
    experiment = getattr(logger, "experiment", None)
    known = all(callable(getattr(experiment, name, None)) for name in ("log_image", "log_text"))
    return MLFlowWriter(logger) if known and hasattr(logger, "run_id") else None
