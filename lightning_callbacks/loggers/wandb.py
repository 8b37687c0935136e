"""Writes pictures, texts, tables and distributions to Weights & Biases."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer.visualization.canvas import Image


class WandbWriter:
    """Passes images, texts, tables and distributions to a ``WandbLogger``.

    A key of a run can hold only one kind of value, so texts are logged under ``{tag}/values``.

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
        caption: str = "",
    ) -> Any:
        """Logs an image ``(H, W, 3)`` with its caption."""
        self._logger.log_image(tag, [img_tensor], step=global_step, caption=[caption])

    def add_table(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        images: Mapping[str, Tensor],
        global_step: int | None = None,
    ) -> None:
        """Logs a table with a picture in each row, to be sorted and filtered by the other columns.

        Args:
            name: The table's name.
            rows: Cells by column; ``tag`` is the tag of the row's picture.
            images: Pictures by tag.
            global_step: The step, which is also a column.
        """
        import wandb

        columns = ["step", *(name for name in rows[0] if name != "tag"), "picture"]
        data = [
            [
                global_step,
                *(value for name, value in row.items() if name != "tag"),
                wandb.Image(images[row["tag"]].numpy()),
            ]
            for row in rows
        ]
        self._logger.log_table(name, columns=columns, data=data, step=global_step)

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> Any:
        """Logs a Markdown text as a table of one cell."""
        self._logger.log_text(f"{tag}/values", ["markdown"], [[text_string]], step=global_step)

    def add_histogram(self, tag: str, values: Tensor, global_step: int | None = None) -> Any:
        """Logs a distribution."""
        import wandb

        # Binned here: W&B takes at most 512 bins, and NumPy's automatic number may be more.
        counts, edges = torch.histogram(values.flatten().float(), bins=64)
        histogram = wandb.Histogram(np_histogram=(counts.numpy(), edges.numpy()))
        self._logger.log_metrics({tag: histogram}, step=global_step)


def wandb_writer(logger: Any) -> WandbWriter | None:
    """Creates a writer for loggers with ``log_image`` and ``log_text``, such as ``WandbLogger``.

    Args:
        logger: Any logger.

    Returns:
        The writer, or None for other loggers.
    """
    known = all(callable(getattr(logger, name, None)) for name in ("log_image", "log_text"))
    return WandbWriter(logger) if known else None
