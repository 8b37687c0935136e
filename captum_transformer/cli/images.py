"""Explains image files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captum_transformer.cli.classifier import Classifier
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import ImageExplanation
from captum_transformer.cli.models import HuggingFaceModel, TimmModel
from captum_transformer.cli.packages import package
from captum_transformer.cli.read import read_image


@dataclass(frozen=True)
class Preparation:
    """From an image to what a model takes.

    Attributes:
        prepare: Scales, cuts and normalises: ``(3, H, W)``.
        mean: What was taken from each channel, ``(3, 1, 1)``.
        std: What each channel was divided by, ``(3, 1, 1)``.
    """

    prepare: Callable[[Image.Image], Tensor]
    mean: Tensor
    std: Tensor

    def shown(self, prepared: Tensor) -> Tensor:
        """What the model sees, as an image of uint8 values."""
        return ((prepared * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)


def explain_image(
    path: Path, name: str, classifier: Classifier, preparation: Preparation
) -> ImageExplanation:
    """Explains one file.

    Args:
        path: The file.
        name: What it is called.
        classifier: The model, the methods and the classes.
        preparation: Of the image.

    Returns:
        The explanation.

    Raises:
        UserError: If the file can't be read or the classes don't exist.
    """
    prepared = preparation.prepare(read_image(path))
    classes, attributions = classifier.explain(prepared[None])
    return ImageExplanation(name, classes, attributions, preparation.shown(prepared))


def preparation_of(loaded: TimmModel | HuggingFaceModel) -> Preparation:
    """Finds out how a model's images are prepared.

    Args:
        loaded: The model.

    Returns:
        The preparation.

    Raises:
        UserError: If a Hugging Face model has no processor.
    """
    if isinstance(loaded, TimmModel):
        return _of_timm(loaded.config)
    return _of_hugging_face(loaded.source)


def names_of(loaded: TimmModel | HuggingFaceModel) -> dict[int, str]:
    """The names of a model's classes, as far as they are known.

    Args:
        loaded: The model.

    Returns:
        Names by id.
    """
    if isinstance(loaded, HuggingFaceModel):
        found = {int(number): str(name) for number, name in loaded.config.id2label.items()}
        # Transformers' filling for names that nobody gave.
        return {number: name for number, name in found.items() if name != f"LABEL_{number}"}
    labels = loaded.config.get("label_names")
    listed = labels if isinstance(labels, list | tuple) else []
    return {number: str(name) for number, name in enumerate(listed)}


def _of_timm(config: Mapping[str, Any]) -> Preparation:
    timm = package("timm.data", "vision")
    data = timm.resolve_data_config({}, pretrained_cfg=dict(config), verbose=False)
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    return Preparation(timm.create_transform(**data, is_training=False), mean, std)


def _of_hugging_face(source: str) -> Preparation:
    transformers = package("transformers", "text")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{source} has no image processor (preprocessor_config.json), so nobody knows what "
            "size and range its images have."
        ) from error

    def prepare(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    normalised = getattr(processor, "do_normalize", False)
    mean, std = (
        torch.tensor(getattr(processor, key) if normalised else [default] * 3)[:, None, None]
        for key, default in (("image_mean", 0.0), ("image_std", 1.0))
    )
    return Preparation(prepare, mean, std)
