"""The manifest: what tells the explanations of two runs apart.

A run that is resumed must be the same one: the same method with the same arguments, the same
weights, the same versions. Otherwise the data set would hold explanations of two kinds.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from lightning_callbacks.data_sets.atomic import written

_FILE = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest of a folder.

    Args:
        folder: The folder with the explanations.

    Returns:
        The manifest; None if there is none.
    """
    path = folder / _FILE
    if not path.is_file():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a folder, atomically.

    Args:
        folder: The folder; it is made if it isn't there.
        manifest: What can be said in JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with written(folder / _FILE) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two manifests disagree on.

    Args:
        there: The manifest of the folder.
        here: That of the present run.

    Returns:
        A line for each entry.

    Example:
        >>> differences({"method": {"gamma": 0.0}}, {"method": {"gamma": 0.1}})
        ['method.gamma: 0.0 there, 0.1 here']
    """
    # As JSON gives it back: a tuple is a list then.
    first, second = (dict(_flat(json.loads(json.dumps(part)))) for part in (there, here))
    return [
        f"{key}: {first.get(key, 'nothing')!s} there, {second.get(key, 'nothing')!s} here"
        for key in dict.fromkeys((*first, *second))
        if first.get(key) != second.get(key) or (key in first) != (key in second)
    ]


def describe_method(method: Attribution, model: nn.Module) -> dict[str, Any]:
    """Says which method explains, with its arguments.

    Args:
        method: A Captum method. Its arguments are what it holds as attributes; what is set only
            when `attribute` is called can't be known.
        model: The model, whose parts are named as in it.

    Returns:
        Its class and arguments, in terms of JSON.

    Example:
        >>> from captum.attr import Saliency
        >>> describe_method(Saliency(nn.Identity()), nn.Identity())["class"]
        'captum.attr._core.saliency.Saliency'
    """
    names = {id(part): name for name, part in model.named_modules()}
    arguments = {
        name: _described(value, model, names)
        for name, value in sorted(vars(method).items())
        if name != "forward_func"
    }
    return {"class": _qualified(type(method)), "arguments": arguments}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Says which model is explained.

    Args:
        model: The model.

    Returns:
        Its class, and a hash of all that a checkpoint would hold.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        content = _hash(value) if isinstance(value, Tensor) else repr(value)
        digest.update(f"{name} {content}\n".encode())
    return {"class": _qualified(type(model)), "hash": f"sha256:{digest.hexdigest()}"}


def describe_versions(model: nn.Module) -> dict[str, str]:
    """The versions of what the explanations are computed with.

    Args:
        model: The model, whose own package is among it.

    Returns:
        Versions by package.
    """
    packages = {"captum_transformer", "captum", "torch", type(model).__module__.partition(".")[0]}
    versions = {
        package: getattr(sys.modules.get(package), "__version__", None)
        for package in sorted(packages)
    }
    # "2.6.0+cpu" and "2.6.0+cu126" are one version: processes may run on different devices.
    return {name: v.partition("+")[0] for name, v in versions.items() if isinstance(v, str)}


def _described(value: Any, model: nn.Module, names: Mapping[int, str]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_described(item, model, names) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _described(item, model, names) for key, item in value.items()}
    if isinstance(value, Attribution):
        return describe_method(value, model)
    if isinstance(value, Tensor):
        return _hash(value)
    if isinstance(value, nn.Module):
        return names.get(id(value), _qualified(type(value)))
    # Their `repr` would hold an address, which is another one in each process.
    return _qualified(value if hasattr(value, "__qualname__") else type(value))


def _qualified(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _hash(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    content = hashlib.sha256(values.numpy().data).hexdigest()
    return f"{tensor.dtype} {tuple(tensor.shape)} {content}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
