"""Loads models of timm by name, from a folder or from a file of weights."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from captum_transformer.cli.errors import UserError, one_line
from captum_transformer.cli.loaded import TimmModel, Wanted
from captum_transformer.cli.names import NOT_OF_THE_MODEL
from captum_transformer.cli.packages import package
from captum_transformer.cli.weights import SUFFIXES, classes_in, fill, prefix_of, read_weights


def is_timm(name: str) -> bool:
    """Returns whether timm has a model of this name."""
    timm = package("timm", "vision")
    return bool(timm.is_model(name.removeprefix("timm/")))


def of_timm(wanted: Wanted) -> TimmModel:
    """Loads a model with the weights that timm has for it."""
    name = wanted.name.removeprefix("timm/")
    try:
        loaded = _create(name, wanted, pretrained=not wanted.random_weights)
    # Without a connection, each library below raises its own kind of error.
    except Exception as error:
        raise UserError(
            f"timm's {name} can't be loaded: {one_line(error)} (--random-weights uses random "
            "weights instead.)"
        ) from error
    return TimmModel(loaded.model, {"label_names": _imagenet_names(loaded.model), **loaded.config})


def _imagenet_names(model: nn.Module) -> list[str]:
    """Returns the class names of timm's own weights."""
    data = package("timm.data", "vision")
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return []
    info = data.ImageNetInfo(subset)
    return [info.index_to_description(number) for number in range(info.num_classes())]


def of_folder(wanted: Wanted, config: Mapping[str, Any]) -> TimmModel:
    """Loads a model from a folder saved by timm, with config.json and the weights."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict) or NOT_OF_THE_MODEL & set(arguments):
        raise UserError(f"{wanted.name}/config.json has arguments that models don't have.")
    classes = config.get("num_classes")
    if isinstance(classes, int):
        arguments = {**arguments, "num_classes": classes}
    loaded = _build(str(config["architecture"]), wanted, arguments)
    saved = config.get("pretrained_cfg")
    known = {**loaded.config, **(saved if isinstance(saved, dict) else {})}
    if wanted.image_size is not None or "img_size" in arguments:
        known["input_size"] = loaded.config["input_size"]
    if config.get("label_names"):
        known["label_names"] = config["label_names"]
    if not wanted.random_weights:
        found = [
            wanted.path / name
            for name in ("model.safetensors", "pytorch_model.bin")
            if (wanted.path / name).is_file()
        ]
        if not found:
            raise UserError(f"{wanted.name} has no model.safetensors and no pytorch_model.bin.")
        weights = read_weights(found[0])
        fill(loaded.model, weights, prefix_of(loaded.model, weights, wanted.part), found[0].name)
    return TimmModel(loaded.model, known)


def of_file(wanted: Wanted) -> TimmModel:
    """Builds a model of timm, and loads its weights from a file."""
    if not wanted.name.endswith(SUFFIXES):
        raise UserError(
            f"{wanted.name} is not a checkpoint: its name should end in {', '.join(SUFFIXES)}."
        )
    if wanted.architecture is None:
        raise UserError(
            "A file of weights doesn't define the model: give timm's name of it with "
            "--architecture, or a folder written by save_pretrained."
        )
    weights = read_weights(wanted.path)
    loaded = _build(wanted.architecture, wanted, {})
    prefix = prefix_of(loaded.model, weights, wanted.part)
    classes = classes_in(loaded.model, weights, prefix)
    if classes is not None:
        loaded = _build(wanted.architecture, wanted, {"num_classes": classes})
    fill(loaded.model, weights, prefix, wanted.name)
    return loaded


def _build(architecture: str, wanted: Wanted, arguments: Mapping[str, Any]) -> TimmModel:
    if not is_timm(architecture):
        raise UserError(f"timm has no architecture {architecture!r}.{near(architecture)}")
    try:
        return _create(architecture, wanted, **arguments)
    except Exception as error:
        raise UserError(f"{architecture} can't be built: {one_line(error)}") from error


def near(name: str) -> str:
    """Returns the names of similar architectures, as a question."""
    close = get_close_matches(name, package("timm", "vision").list_models(), 3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _create(name: str, wanted: Wanted, **arguments: Any) -> TimmModel:
    timm = package("timm", "vision")
    arguments |= wanted.arguments
    if wanted.image_size is not None:
        arguments["img_size"] = wanted.image_size
    model = timm.create_model(name, **arguments)
    config = {**model.pretrained_cfg}
    if "in_chans" in arguments:
        config["input_size"] = (arguments["in_chans"], *config.get("input_size", (3, 224, 224))[1:])
    size = arguments.get("img_size")
    if size is not None:
        # The configuration of some models has the image size that they were trained with.
        height, width = size if isinstance(size, list | tuple) else (size, size)
        config["input_size"] = (config.get("input_size", (3,))[0], int(height), int(width))
    return TimmModel(model, config)
