"""TensorBoard, and every other logger whose experiment has the face of its SummaryWriter."""

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
