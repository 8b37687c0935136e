"""Explains image files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captum_transformer.cli.classifier import Classifier
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import ImageExplanation
from captum_transformer.cli.loaded import HuggingFaceModel, TimmModel
from captum_transformer.cli.packages import package
from captum_transformer.cli.read import read_image
from captum_transformer.explainers.classes import ClassNames


@dataclass(frozen=True)
class Changes:
    """Changes to the preprocessing that the model's configuration defines.

    Attributes:
        mean: The value that is subtracted from each channel.
        std: The value that each channel is divided by.
        size: The height and width.
        crop: Whether to crop the centre, or to scale the whole image to the size.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: int | None = None
    crop: bool | None = None


@dataclass(frozen=True)
class Preparation:
    """The preprocessing of images.

    Attributes:
        prepare: Scales, crops and normalises an image to a tensor ``(channels, H, W)``.
        mean: The value that is subtracted from each channel, ``(channels, 1, 1)``.
        std: The value that each channel is divided by, ``(channels, 1, 1)``.
        said: A description of the preprocessing.
    """

    prepare: Callable[[Image.Image], Tensor]
    mean: Tensor
    std: Tensor
    said: str

    def shown(self, prepared: Tensor) -> Tensor:
        """Returns the model's input as an image of uint8 values."""
        return ((prepared * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)


def explain_image(
    path: Path,
    name: str,
    classifier: Classifier,
    preparation: Preparation,
    *,
    pixels: bool = False,
) -> ImageExplanation:
    """Explains one file.

    Args:
        path: The file.
        name: The name of the image.
        classifier: The model, the methods and the classes.
        preparation: The preprocessing.
        pixels: Show the relevance of pixels, not of patches.

    Returns:
        The explanation.

    Raises:
        UserError: If the file can't be read or the classes don't exist.
    """
    prepared = preparation.prepare(read_image(path))
    classes, attributions = classifier.explain(prepared[None])
    grid = None if pixels else classifier.grid(prepared[None])
    return ImageExplanation(name, classes, attributions, preparation.shown(prepared), grid)


def preparation_of(
    loaded: TimmModel | HuggingFaceModel, changes: Changes | None = None
) -> Preparation:
    """Finds a model's preprocessing.

    Args:
        loaded: The model.
        changes: Changes to the preprocessing.

    Returns:
        The preparation.

    Raises:
        UserError: If a Hugging Face model has no processor, or numbers don't fit the channels.
    """
    changes = changes or Changes()
    if isinstance(loaded, TimmModel):
        return _of_timm(loaded.config, changes)
    return _of_hugging_face(loaded.source, changes)


def names_of(loaded: TimmModel | HuggingFaceModel) -> dict[int, str]:
    """Returns the known names of a model's classes.

    Args:
        loaded: The model.

    Returns:
        Names by id.
    """
    if loaded.classes is None:
        return {}
    if isinstance(loaded, HuggingFaceModel):
        return ClassNames(loaded.model).of(loaded.classes)
    labels = loaded.config.get("label_names")
    listed = labels if isinstance(labels, list | tuple) else []
    # Names of the pretrained weights that training started from belong to other classes.
    return dict(enumerate(map(str, listed))) if len(listed) == loaded.classes else {}


def _of_timm(config: Mapping[str, Any], changes: Changes) -> Preparation:
    timm = package("timm.data", "vision")
    data = timm.resolve_data_config({}, pretrained_cfg=dict(config), verbose=False)
    channels, height, width = config.get("input_size", data["input_size"])
    if changes.size is not None:
        height = width = changes.size
    data["input_size"] = (channels, height, width)
    for name, given in (("mean", changes.mean), ("std", changes.std)):
        data[name] = _of_channels(name, given or data[name], channels)
    if changes.crop is False:
        data |= {"crop_pct": 1.0, "crop_mode": "squash"}
    elif changes.crop:
        data["crop_mode"] = "center"
    transform = timm.create_transform(**data, is_training=False)

    def prepare(image: Image.Image) -> Tensor:
        prepared: Tensor = transform(image.convert("L") if channels == 1 else image)
        return prepared

    part = "the whole" if data["crop_mode"] == "squash" else f"the middle {data['crop_pct']:.0%}"
    said = _said(f"{part}, {height} x {width}", data["mean"], data["std"])
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    return Preparation(prepare, mean, std, said)


def _of_hugging_face(source: str, changes: Changes) -> Preparation:
    transformers = package("transformers", "text")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        if changes.mean and changes.std and changes.size:
            return _of_timm({"input_size": (3, 0, 0), "crop_pct": 1.0}, changes)
        raise UserError(
            f"{source} has no image processor (preprocessor_config.json), so the size and range "
            "of its images are unknown. Save one next to the model, "
            "`AutoImageProcessor.from_pretrained(the model it was trained from).save_pretrained("
            "folder)`, or pass --size, --mean and --std."
        ) from error
    options = _options(processor, changes)

    def prepare(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt", **options)["pixel_values"][0]
        return pixels

    normalised = bool(changes.mean or changes.std or getattr(processor, "do_normalize", False))
    values = [
        options.get(key, getattr(processor, key, None)) if normalised else None
        for key in ("image_mean", "image_std")
    ]
    mean, std = (
        _of_channels(name, [default] if value is None else value, 3)
        for name, value, default in zip(("mean", "std"), values, (0.0, 1.0), strict=True)
    )
    cropped = options.get("do_center_crop", getattr(processor, "do_center_crop", False))
    part = "the middle" if cropped else "the whole"
    size = getattr(processor, "crop_size" if cropped else "size", None)
    said = _said(f"{part}, {_size(options.get('size', size))}", mean, std)
    return Preparation(
        prepare, torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None], said
    )


def _options(processor: Any, changes: Changes) -> dict[str, Any]:
    """Returns the options with which a processor of Transformers makes the changes."""
    options: dict[str, Any] = {}
    for key, given in (("image_mean", changes.mean), ("image_std", changes.std)):
        if given:
            options |= {key: _of_channels(key, given, 3), "do_normalize": True}
    crop = getattr(processor, "do_center_crop", False) if changes.crop is None else changes.crop
    if changes.size is None and changes.crop is None:
        return options
    known = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
    side = changes.size or known.get("height") or known.get("shortest_edge")
    if side is None:
        raise UserError("The size of the model's images is unknown: pass --size.")
    square = {"height": side, "width": side}
    options |= {"do_resize": True, "do_center_crop": bool(crop)}
    if crop:
        return options | {"size": {"shortest_edge": side}, "crop_size": square}
    return options | {"size": square}


def _of_channels(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns a number for each channel."""
    if len(values) not in (1, channels):
        raise UserError(
            f"{name} has {len(values)} numbers for {channels} channels: give --mean and --std."
        )
    return tuple(map(float, values if len(values) == channels else list(values) * channels))


def _said(part: str, mean: Sequence[float], std: Sequence[float]) -> str:
    numbers = ("/".join(f"{value:.3g}" for value in values) for values in (mean, std))
    return "{}, mean {}, std {}".format(part, *numbers)


def _size(size: Any) -> str:
    found = dict(size or {})
    if "height" in found:
        return f"{found['height']} x {found['width']}"
    return ", ".join(f"{name} {value}" for name, value in found.items())
