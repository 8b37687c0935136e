"""Reads weights, without running code from the file, and loads them into a model."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_transformer.cli.errors import UserError, one_line

SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pth.tar", ".safetensors")
"""The endings of the names of files with weights."""
_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint.

    Args:
        path: A file of safetensors or of PyTorch: a ``state_dict``, or a training checkpoint that
            has one.

    Returns:
        The tensors by name.

    Raises:
        UserError: If it can't be read, or has objects other than weights.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_values()):
            read = torch.load(path, map_location="cpu", weights_only=True)
    # Truncated files, files of other programs and refused code raise different errors.
    except Exception as error:
        if found := _code_in(path):
            raise UserError(
                f"{path} has objects other than weights ({_listed(found)}), and code in "
                "checkpoints is not run. If you trust the file, write its weights to another: "
                "`torch.save(torch.load(path, weights_only=False)['state_dict'], 'weights.pt')`; "
                "of a whole model, save its `state_dict()`."
            ) from error
        raise UserError(f"{path} can't be read as weights: {one_line(error)}") from error
    if not isinstance(read, dict):
        raise UserError(f"{path} has no state_dict.")
    return dict(_tensors(read))


def _values() -> list[Any]:
    """Returns the harmless types that checkpoints contain in addition to weights."""
    kept: list[Any] = [argparse.Namespace, datetime, timedelta, timezone, np.dtype, np.ndarray]
    kept += [type(np.dtype(each)) for each in "?bhilBHILefd"]
    # Under their names in all versions.
    of_numbers: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        kept += [(make, f"{module}.{make.__name__}") for make in of_numbers]
    for module in ("pathlib", "pathlib._local"):
        kept.append((type(Path()), f"{module}.{type(Path()).__name__}"))
    return kept


def _code_in(path: Path) -> list[str]:
    """Returns the names of the classes and functions in a file that are not allowed."""
    try:
        with torch.serialization.safe_globals(_values()):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    # It isn't a file of PyTorch.
    except Exception:
        return []


def _tensors(read: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields all tensors with their names, prefixed by the names of nested dicts."""
    for key, value in read.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")


def fill(model: nn.Module, weights: Mapping[str, Tensor], prefix: str, name: str) -> None:
    """Loads weights into a model; names and shapes must match exactly.

    Args:
        model: The model.
        weights: The weights by name; those without the prefix are left out.
        prefix: The prefix of their names.
        name: The name of their file.

    Raises:
        UserError: If the weights don't match the model.
    """
    own = {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }
    expected = model.state_dict()
    missing = [key for key in expected if key not in own]
    unknown = [f"{prefix}{key}" for key in own if key not in expected]
    resized = [
        f"{key} has the shape {tuple(own[key].shape)} in the file and {tuple(weight.shape)} in it"
        for key, weight in expected.items()
        if key in own and own[key].shape != weight.shape
    ]
    if missing or unknown or resized:
        differences = [
            f"{said}: {_listed(keys)}"
            for said, keys in (
                ("missing", missing),
                ("only in the file", unknown),
                ("other shapes", resized),
            )
            if keys
        ]
        fitting = len(expected) - len(missing) - len(resized)
        raise UserError(
            f"{name} has weights of another model than {type(model).__name__} as it was built: "
            f"{fitting} of {len(expected)} fit ({'; '.join(differences)}). "
            f"{_cause(weights, missing, fitting)}"
        )
    model.load_state_dict(own)


def _cause(weights: Mapping[str, Tensor], missing: Sequence[str], fitting: int) -> str:
    """Returns the likely cause of a mismatch, and what to do."""
    elsewhere = [key for key in weights if any(f".{key}".endswith(f".{end}") for end in missing)]
    if missing and fitting and len(elsewhere) == len(missing):
        return (
            f"The missing weights have another prefix there ({_listed(elsewhere)}): save a "
            "state_dict in which all names have the same prefix."
        )
    return "Check --architecture, --image-size and --model-kwargs, such as depth=4 or in_chans=1."


def classes_in(model: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> int | None:
    """Returns the number of classes of weights that differ from a model's only in that number.

    Args:
        model: The model as it was built.
        weights: The weights by name.
        prefix: The prefix of their names.

    Returns:
        The number, or None if the weights don't show it, or it is that of the model.
    """
    built = getattr(model, "num_classes", None)
    counts = {
        len(found)
        for key, own in model.state_dict().items()
        if (found := weights.get(prefix + key)) is not None and found.shape != own.shape
        if found.shape[1:] == own.shape[1:] and len(own) == built
    }
    return counts.pop() if len(counts) == 1 else None


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def prefix_of(model: nn.Module, weights: Mapping[str, Tensor], chosen: str | None = None) -> str:
    """Returns the prefix that a training added to the names, such as ``model.`` or ``module.``.

    Args:
        model: The model that the weights are for.
        weights: The weights by name.
        chosen: The prefix chosen by the user, with or without the dot at its end.

    Returns:
        The prefix; empty if there is none.

    Raises:
        UserError: If the chosen prefix doesn't exist, or several prefixes fit.
    """
    own = model.state_dict()
    first = next(iter(own))
    ends = [key.removesuffix(first) for key in weights if key.endswith(first)]
    fitting = [end for end in ends if all(_fits(weights.get(end + k), w) for k, w in own.items())]
    names = ", ".join(end.rstrip(".") or "''" for end in fitting)
    if chosen is not None:
        fitting = [end for end in ends if f".{end}".endswith(f".{chosen.rstrip('.')}.")]
        if len(fitting) != 1:
            raise UserError(f"--weights {chosen} is not one of the models that fit: {names}.")
    if len(fitting) > 1:
        raise UserError(f"The file has several models that fit: choose one by --weights, {names}.")
    return min(fitting or ends, key=len, default="")


def _fits(found: Tensor | None, weight: Tensor) -> bool:
    """Returns whether a weight fits a model, which may have another number of classes."""
    return found is not None and found.shape[1:] == weight.shape[1:]
