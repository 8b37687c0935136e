"""Models of timm and Transformers, as the user specified and as they are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

PIXELS = "pixel_values"  # the name of the input of models that read images


@dataclass(frozen=True)
class Wanted:
    """The model that the user specified.

    Attributes:
        name: A name, a folder or a file.
        architecture: timm's name of the architecture, for a file.
        image_size: The images' height and width, if the model supports several.
        random_weights: Use random weights instead of trained ones.
        part: The prefix of the weights' names in a file.
        arguments: The arguments that a timm model is built with.
    """

    name: str
    architecture: str | None = None
    image_size: int | None = None
    random_weights: bool = False
    part: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The name as a path."""
        return Path(self.name)


@dataclass(frozen=True)
class TimmModel:
    """A model of timm.

    Attributes:
        model: The model.
        config: timm's configuration of its images and labels.
    """

    model: nn.Module
    config: Mapping[str, Any]

    @property
    def reads(self) -> str:
        """The name of the first input."""
        return PIXELS

    @property
    def classes(self) -> int | None:
        """The number of classes, or None if the model doesn't define it."""
        return getattr(self.model, "num_classes", None)


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model of Transformers.

    Attributes:
        model: The model.
        source: The name or folder of its processor and tokenizer.
    """

    model: nn.Module
    source: str

    @property
    def classes(self) -> int | None:
        """The number of classes, or None if the model doesn't define it."""
        return getattr(self.config, "num_labels", None)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def reads(self) -> str:
        """The name of the first input."""
        return str(getattr(self.model, "main_input_name", PIXELS))

    @property
    def writes(self) -> bool:
        """Whether the model can generate text."""
        model: Any = self.model
        return bool(model.can_generate())
