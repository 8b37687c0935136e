"""The entries that a process adds to the log in one run, before they are passed to a logger."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_transformer.visualization.canvas import Image


@dataclass
class LogEntries:
    """Pictures, texts, distributions and numbers of one run.

    The form is the same for entries of this process and of another one.

    Attributes:
        run: The name of the run, with the number that the monitor gives it.
        step: The step of all entries.
        images: Uint8 pictures ``(H, W, 3)``, by tag.
        captions: The captions of pictures, by tag; they are also drawn in the pictures.
        tables: Rows of named cells, by the table's name; ``tag`` is the tag of the row's picture.
        texts: Markdown, by tag.
        histograms: Values, by tag.
        numbers: The values whose mean is logged, by tag.
        samples: The identities of the samples by number, for the first process's checkpoint.
        scales: The scales of the pictures by tag, for the first process's checkpoint.

    Example:
        >>> entries = LogEntries("validate/0", 200)
        >>> entries.numbers["attribution/convergence_delta/lrp"] += [0.5, 1.5]
        >>> entries.means()
        {'attribution/convergence_delta/lrp': 1.0}
    """

    run: str
    step: int
    images: dict[str, Tensor] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    samples: dict[str, str] = field(default_factory=dict)
    scales: dict[str, list[Any]] = field(default_factory=dict)

    def add_picture(self, tag: str, picture: Image, caption: str) -> None:
        """Adds a picture.

        Args:
            tag: Its tag.
            picture: A uint8 array ``(H, W, 3)``.
            caption: Its caption.
        """
        self.images[tag] = torch.from_numpy(np.ascontiguousarray(picture))
        self.captions[tag] = caption

    def add_text(self, tag: str, text: str) -> None:
        """Adds a text.

        Args:
            tag: Its tag.
            text: Markdown.
        """
        self.texts[tag] = text

    def means(self) -> dict[str, float]:
        """Returns the means of the numbers.

        Returns:
            Means by tag, without tags that have no value in this run.
        """
        return {tag: sum(values) / len(values) for tag, values in self.numbers.items() if values}

    def size(self) -> int:
        """Returns the most bytes that the pictures, texts and distributions can take in a log."""
        pictures = sum(image.numel() for image in self.images.values())
        texts = sum(4 * len(text) for text in self.texts.values())
        # A histogram has a limited number of bins.
        return pictures + texts + 100_000 * len(self.histograms)

    def merge(self, other: LogEntries) -> None:
        """Adds the numbers of another process's part of the same run.

        Args:
            other: The entries of the other process.
        """
        for tag, values in other.numbers.items():
            self.numbers[tag] += values
