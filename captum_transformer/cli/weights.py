"""Reads weights, and nothing but weights, and puts them into a model."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer.cli.errors import UserError, one_line

SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pth.tar", ".safetensors")
_SHOWN = 3
"""How files of weights are called."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint.

    Args:
        path: A file of safetensors, or of PyTorch: a ``state_dict``, or what a training has put one
            into.

    Returns:
        The tensors by name.

    Raises:
        UserError: If it can't be read, or has other things than weights.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Trainings keep their arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            read = torch.load(path, map_location="cpu", weights_only=True)
    # Truncated, of another program, or code that was refused: each has errors of its own.
    except Exception as error:
        raise UserError(
            f"{path} can't be read as weights alone, and code in checkpoints is not run. "
            f"Save its state_dict. ({one_line(error)})"
        ) from error
    if not isinstance(read, dict):
        raise UserError(f"{path} has no state_dict.")
    return dict(_tensors(read))


def _tensors(read: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors with their names, those in dicts within behind the names of the dicts."""
    for key, value in read.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")


def fill(model: nn.Module, weights: Mapping[str, Tensor], prefix: str, name: str) -> None:
    """Gives a model its weights, all of them.

    Args:
        model: The model.
        weights: Its weights; those of other parts are left out.
        prefix: What stands before their names.
        name: What their file is called.

    Raises:
        UserError: If they are another model's.
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
        raise UserError(
            f"{name} has weights of another model than {type(model).__name__} as it was built "
            f"({'; '.join(differences)}). Check --architecture, --image-size and --model-kwargs, "
            "such as depth=4 or in_chans=1."
        )
    model.load_state_dict(own)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def prefix_of(model: nn.Module, weights: Mapping[str, Tensor], chosen: str | None = None) -> str:
    """What a training has put before the names, such as ``model.`` or ``module.``.

    Args:
        model: The model that the weights are for.
        weights: The weights by name.
        chosen: What the user wants it to be, with or without the dot at its end.

    Returns:
        The prefix; empty if there is none.

    Raises:
        UserError: If it is not there, or there are several.
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
    """Whether a weight can be a model's, which may have another number of classes."""
    return found is not None and found.shape[1:] == weight.shape[1:]
