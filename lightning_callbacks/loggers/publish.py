"""Passes the entries of a run to the trainer's loggers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.loggers.png import PNGWriter, folder_of
from lightning_callbacks.loggers.tensorboard import (
    add_charts,
    add_picture,
    as_before_if_it_fails,
    tensorboard_writer,
)
from lightning_callbacks.loggers.wandb import WandbWriter
from lightning_callbacks.loggers.writers import image_writers
from lightning_callbacks.shared.failures import Failures

_NUMBERS = 10_000
"""The most bytes that the numbers of a run may take."""


class Publisher:
    """Writes entries to all loggers; a logger that fails doesn't affect the others.

    Args:
        loggers: The trainer's loggers; none in a process that writes nothing.
        default_folder: The folder for PNG files if no logger accepts images or has a folder.
        failures: What happens if a logger fails.
    """

    def __init__(self, loggers: Sequence[Any], default_folder: str, failures: Failures) -> None:
        self.loggers = loggers
        self._failures = failures
        self._writers: list[Any] = list(image_writers(loggers, default_folder))
        if isinstance(self._writers[0], PNGWriter):
            failures.warn_once(
                "images",
                f"No logger takes images, so {failures.owner} writes PNG files to "
                f"{self._writers[0].folder}. Use a TensorBoardLogger to step through them.",
            )

    def pictures(self, entries: LogEntries) -> None:
        """Writes everything but the numbers.

        Args:
            entries: The entries of a process.
        """
        for writer in self._writers:
            with (
                self._failures.tolerated(f"write to {type(writer).__name__}"),
                as_before_if_it_fails(writer, entries.size()),
            ):
                captioned = isinstance(writer, WandbWriter)
                for tag, image in entries.images.items():
                    more = {"caption": entries.captions.get(tag, "")} if captioned else {}
                    add_picture(writer, tag, image.numpy(), entries.step, **more)
                if captioned:
                    for name, rows in entries.tables.items():
                        writer.add_table(name, rows, entries.images, entries.step)
                if hasattr(writer, "add_text"):
                    for tag, text in entries.texts.items():
                        writer.add_text(tag, text, entries.step)
                if hasattr(writer, "add_histogram"):
                    for tag, values in entries.histograms.items():
                        writer.add_histogram(tag, values, entries.step)

    def numbers(self, entries: LogEntries) -> None:
        """Writes the means of the numbers.

        Args:
            entries: The numbers of all processes.
        """
        if means := entries.means():
            for logger in self.loggers:
                with (
                    self._failures.tolerated(f"log numbers with {type(logger).__name__}"),
                    as_before_if_it_fails(tensorboard_writer(logger), _NUMBERS),
                ):
                    logger.log_metrics(means, step=entries.step)

    def layout(self, layout: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Defines the charts on TensorBoard's page for custom scalars.

        Args:
            layout: The layout, as for a SummaryWriter's ``add_custom_scalars``; the name of its
                first category becomes the name of its run.
        """
        name = folder_of(f"{next(iter(layout))}_charts").as_posix()
        for writer in self._writers:
            with self._failures.tolerated("lay out custom scalars"):
                add_charts(writer, layout, name)


def charts(prefix: str, kinds: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the layout with a chart for each kind of number, and a line for each method.

    Args:
        prefix: The beginning of all tags.
        kinds: The kinds of numbers.
        methods: The methods' names.

    Returns:
        The layout.

    Example:
        >>> charts("attribution", ["rank_correlation"], ["lrp"])
        {'attribution': {'rank correlation': ['Multiline', ['attribution/rank_correlation/lrp$']]}}
    """
    return {
        prefix: {
            kind.replace("_", " "): [
                "Multiline",
                [f"{re.escape(f'{prefix}/{kind}/{method}')}$" for method in methods],
            ]
            for kind in kinds
        }
    }
