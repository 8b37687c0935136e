"""Finds and loads models by name, without running code from their files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from captum_transformer.cli.errors import UserError, one_line
from captum_transformer.cli.names import NOT_OF_THE_MODEL
from captum_transformer.cli.packages import package
from captum_transformer.cli.read import check_file, is_folder
from captum_transformer.cli.weights import SUFFIXES, classes_in, fill, prefix_of, read_weights

_MAX_CONFIG_BYTES = 10_000_000


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
    def writes(self) -> bool:
        """Whether the model can generate text."""
        model: Any = self.model
        return bool(model.can_generate())


def load_model(wanted: Wanted) -> TimmModel | HuggingFaceModel:
    """Loads a model in evaluation mode.

    Args:
        wanted: The model that the user specified.

    Returns:
        The model.

    Raises:
        UserError: If there is no such model, or it can't be loaded.
    """
    if _is_file(wanted.path):
        loaded: TimmModel | HuggingFaceModel = _of_file(wanted)
    elif is_folder(wanted.path):
        if not _is_file(wanted.path / "config.json"):
            raise UserError(
                f"{wanted.name} has no config.json, so its model is unknown. Write a folder with "
                "`model.save_pretrained(folder)` (Transformers) or "
                "`timm.models.save_for_hf(model, folder)`, or give a file of weights with "
                "--architecture."
            )
        config = _read_config(wanted.path)
        loaded = _of_folder(wanted, config) if "architecture" in config else _hugging_face(wanted)
    elif wanted.name.endswith(SUFFIXES) or _is_path(wanted.name):
        raise UserError(f"There is no file or folder {wanted.name}.")
    elif _is_timm(wanted.name):
        loaded = _of_timm(wanted)
    else:
        loaded = _hugging_face(wanted)
    if wanted.arguments and not isinstance(loaded, TimmModel):
        raise UserError("--model-kwargs are for models of timm; Transformers' have a config.json.")
    loaded.model.eval()
    return loaded


def _is_path(name: str) -> bool:
    """Returns whether a name can only be a path; ``owner/model`` may be a path or not."""
    return name.startswith((".", "~")) or "\\" in name or Path(name).is_absolute()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    # As in `is_folder`.
    except OSError:
        return False


def _is_timm(name: str) -> bool:
    timm = package("timm", "vision")
    return bool(timm.is_model(name.removeprefix("timm/")))


def _of_timm(wanted: Wanted) -> TimmModel:
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


def _of_folder(wanted: Wanted, config: Mapping[str, Any]) -> TimmModel:
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


def _of_file(wanted: Wanted) -> TimmModel:
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
    if not _is_timm(architecture):
        raise UserError(f"timm has no architecture {architecture!r}.{_near(architecture)}")
    try:
        return _create(architecture, wanted, **arguments)
    except Exception as error:
        raise UserError(f"{architecture} can't be built: {one_line(error)}") from error


def _near(name: str) -> str:
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


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        check_file(path, _MAX_CONFIG_BYTES)
        config = json.loads(path.read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path}: {error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a model's configuration.")
    return config


def _hugging_face(wanted: Wanted) -> HuggingFaceModel:
    transformers = package("transformers", "text")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # It reports each attempt to reach the hub; the error reports it once.
    package("huggingface_hub.utils.logging", "text").set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(wanted.name, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{wanted.name} is neither a model of timm nor one of Hugging Face that can be "
            f"loaded.{_near(wanted.name)} ({one_line(error)})"
        ) from error
    name = next(iter(config.architectures or []), "")
    kind = _class_named(name, transformers)
    if kind is None:
        raise UserError(
            f"{wanted.name} is a {name or 'model without a named class'}, which this version of "
            "Transformers doesn't have. Code from a model's files is not run."
        )
    try:
        if wanted.random_weights:
            return HuggingFaceModel(kind(config), wanted.name)
        model, report = kind.from_pretrained(
            wanted.name, config=config, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(f"{wanted.name} can't be loaded: {one_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{wanted.name} lacks weights of a {name}: {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}."
        )
    return HuggingFaceModel(model, wanted.name)


def _class_named(name: str, transformers: Any) -> Any:
    kind = getattr(transformers, name, None)
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if known else None
