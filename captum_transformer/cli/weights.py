"""Reads weights, and nothing but weights, and puts them into a model."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from captum_transformer.cli.errors import UserError, one_line

SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
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
        read = torch.load(path, map_location="cpu", weights_only=True)
    # Truncated, of another program, or code that was refused: each has errors of its own.
    except Exception as error:
        raise UserError(
            f"{path} can't be read as weights alone, and code in checkpoints is not run. "
            f"Save its state_dict. ({one_line(error)})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(read, dict) and isinstance(read.get(key), dict):
            read = read[key]
    if not isinstance(read, dict):
        raise UserError(f"{path} has no state_dict.")
    return {str(key): value for key, value in read.items() if isinstance(value, Tensor)}


def fill(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Gives a model its weights, all of them.

    Args:
        model: The model.
        weights: Its weights, with or without a prefix; those of other parts are left out.
        name: What their file is called.

    Raises:
        UserError: If they are another model's.
    """
    prefix = prefix_of(model, weights)
    own = {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(f"{name} has weights of another model: {one_line(error)}") from error


def prefix_of(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """What a training has put before the names, such as ``model.`` or ``module.``.

    Args:
        model: The model that the weights are for.
        weights: The weights by name.

    Returns:
        The prefix; empty if there is none.
    """
    own = next(iter(model.state_dict()))
    ends = [key.removesuffix(own) for key in weights if key.endswith(own)]
    return min(ends, key=len, default="")
