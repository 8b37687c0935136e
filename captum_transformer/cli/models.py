"""Finds and loads models by name, without running code from their files."""

import json
from pathlib import Path
from typing import Any

from captum_transformer.cli.errors import UserError
from captum_transformer.cli.hugging_face import of_hugging_face
from captum_transformer.cli.loaded import HuggingFaceModel, TimmModel, Wanted
from captum_transformer.cli.read import check_file, is_folder
from captum_transformer.cli.timm_models import is_timm, of_file, of_folder, of_timm
from captum_transformer.cli.weights import SUFFIXES

_MAX_CONFIG_BYTES = 10_000_000


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
        loaded: TimmModel | HuggingFaceModel = of_file(wanted)
    elif is_folder(wanted.path):
        if not _is_file(wanted.path / "config.json"):
            raise UserError(
                f"{wanted.name} has no config.json, so its model is unknown. Write a folder with "
                "`model.save_pretrained(folder)` (Transformers) or "
                "`timm.models.save_for_hf(model, folder)`, or give a file of weights with "
                "--architecture."
            )
        config = _read_config(wanted.path)
        loaded = of_folder(wanted, config) if "architecture" in config else of_hugging_face(wanted)
    elif wanted.name.endswith(SUFFIXES) or _is_path(wanted.name):
        raise UserError(f"There is no file or folder {wanted.name}.")
    elif is_timm(wanted.name):
        loaded = of_timm(wanted)
    else:
        loaded = of_hugging_face(wanted)
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
