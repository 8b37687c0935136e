"""Describes methods and models in JSON, so that two runs can be compared.

A description must be the same in every process, on every device and at any time, and must differ
if the explanations would.
"""

from __future__ import annotations

import enum
import hashlib
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from lightning_callbacks.data_sets.checksums import checksum_of
from lightning_callbacks.shared.flavors import LightningModule, OtherLightningModule

_OF_ALL_MODULES = frozenset(vars(nn.Module()))


def describe_method(method: Attribution, model: nn.Module) -> dict[str, Any]:
    """Describes a method and its arguments.

    Args:
        method: A Captum method. Its arguments are its attributes; arguments that are only passed
            to `attribute` can't be known.
        model: The model, whose parts are named as in it.

    Returns:
        Its class and arguments, as values of JSON.

    Example:
        >>> from captum.attr import Saliency
        >>> describe_method(Saliency(nn.Identity()), nn.Identity())["class"]
        'captum.attr._core.saliency.Saliency'
    """
    arguments = {name: describe(value, model) for name, value in sorted(vars(method).items())}
    return {"class": _qualified(type(method)), "arguments": arguments}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Describes a model.

    Args:
        model: The model.

    Returns:
        Its class, a hash of its state dict, a hash of the buffers that aren't in the state dict,
        and its modules: the class of each, its plain attributes and the code of its `forward`.
    """
    state = model.state_dict()
    others = {name: value for name, value in model.named_buffers() if name not in state}
    described: set[int] = set()
    return {
        "class": _qualified(type(model)),
        "hash": _hash_of_state(state),
        "buffers": _hash_of_state(others) if others else None,
        "modules": {
            name or "the model": _describe_module(module, described)
            for name, module in model.named_modules()
        },
    }


def describe_versions(model: nn.Module) -> dict[str, str]:
    """Returns the versions of the packages that compute the explanations.

    Args:
        model: The model, whose own package is included.

    Returns:
        Versions by package.
    """
    packages = {"captum_transformer", "captum", "torch", type(model).__module__.partition(".")[0]}
    versions = {
        package: getattr(sys.modules.get(package), "__version__", None)
        for package in sorted(packages)
    }
    # "2.6.0+cpu" and "2.6.0+cu126" are one version: processes may run on different devices.
    known = {name: v.partition("+")[0] for name, v in versions.items() if isinstance(v, str)}
    # The compiled code of functions depends on it.
    return {**known, "python": f"{sys.version_info.major}.{sys.version_info.minor}"}


def describe(value: Any, model: nn.Module) -> Any:
    """Describes an argument.

    Args:
        value: Anything.
        model: The model; its parts are called by their names in it.

    Returns:
        The argument as values of JSON: tensors by their hashes, functions by their names, code,
        defaults and closures, objects by their class and plain attributes.

    Example:
        >>> describe((1, torch.float32), nn.Identity())
        [1, 'torch.float32']
        >>> one, other = (describe(lambda x, n=n: x + n, nn.Identity()) for n in (1, 2))
        >>> one["defaults"], other["defaults"]
        ([1], [2])
    """
    names = {id(part): name for name, part in model.named_modules()}
    return _described(value, names, ())


def _described(value: Any, names: Mapping[int, str], inside: tuple[int, ...]) -> Any:
    if (plain := _plain(value)) is not _UNKNOWN:
        return plain
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))
    if isinstance(value, (list, tuple)):
        return [_described(item, names, inside) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(_described(item, names, inside)) for item in value)
    if isinstance(value, Mapping):
        return {str(key): _described(item, names, inside) for key, item in value.items()}
    if isinstance(value, nn.Module):
        return names.get(id(value), _qualified(type(value)))
    if isinstance(value, partial):
        parts = {"partial": value.func, "arguments": value.args, "named": value.keywords}
        return {key: _described(part, names, inside) for key, part in parts.items()}
    if isinstance(value, MethodType):
        return {
            "method": _described(value.__func__, names, inside),
            "of": _described(value.__self__, names, inside),
        }
    if isinstance(value, FunctionType):
        return _describe_function(value, names, inside)
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return _qualified(value)
    if is_dataclass(value):
        held = {field.name: getattr(value, field.name, None) for field in fields(value)}
    elif isinstance(value, Attribution):
        held = vars(value)
    else:
        # Lists and mappings of unknown objects are left out: they may hold what it has seen so far.
        held = {name: part for name, part in _attributes(value) if _plain(part) is not _UNKNOWN}
    attributes = {name: _described(held[name], names, inside) for name in sorted(held)}
    return {"class": _qualified(type(value)), **attributes}


_UNKNOWN = object()


def _plain(value: Any) -> Any:
    """Returns the description of a value without parts, or `_UNKNOWN` for any other."""
    if isinstance(value, enum.Enum):
        return f"{_qualified(type(value))}.{value.name}"
    if isinstance(value, float) and not math.isfinite(value):
        # As a string, since NaN isn't equal to itself.
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.layout, torch.Size)):
        return str(value)
    if isinstance(value, torch.device):
        return "a device"
    if isinstance(value, Tensor):
        return _hash(value)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        return _hash(torch.from_numpy(np.array(value)))
    return _UNKNOWN


def _describe_function(
    function: FunctionType, names: Mapping[int, str], inside: tuple[int, ...]
) -> dict[str, Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    held = {
        "defaults": (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()),
        "closure": cells,
    }
    said = {key: _described(part, names, inside) for key, part in held.items() if part}
    return {"function": _qualified(function), "code": _hash_of_code(function.__code__), **said}


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _describe_module(module: nn.Module, described: set[int]) -> str:
    # Lightning keeps the state of the trainer in private attributes.
    private = not isinstance(module, (LightningModule, OtherLightningModule))
    said = []
    for name, value in sorted(vars(module).items()):
        if name in _OF_ALL_MODULES or (name.startswith("_") and not private):
            continue
        if (plain := _of_structure(value)) is not _UNKNOWN:
            said.append(f"{name}={plain}")
        elif hasattr(value, "__dict__") and not callable(value) and id(value) not in described:
            # Such as a configuration, which all modules of a model may hold.
            described.add(id(value))
            held = [(key, _of_structure(part)) for key, part in _attributes(value)]
            said += [
                f"{name}.{key}={part}"
                for key, part in sorted(held, key=lambda pair: pair[0])
                if part is not _UNKNOWN and not key.startswith("_")
            ]
    state = vars(module)
    hooks = [*state["_forward_pre_hooks"].values(), *state["_forward_hooks"].values()]
    said += [f"hook={_described(hook, {id(module): 'itself'}, ())}" for hook in hooks]
    forward = getattr(type(module).forward, "__code__", None)
    code = f" {_hash_of_code(forward)}" if forward is not None else ""
    return f"{_qualified(type(module))}({', '.join(said)}){code}"


def _of_structure(value: Any) -> Any:
    if isinstance(value, torch.device):
        return _UNKNOWN
    if isinstance(value, (list, tuple)):
        parts = [_of_structure(part) for part in value]
        return _UNKNOWN if any(part is _UNKNOWN for part in parts) else parts
    if isinstance(value, partial) or (callable(value) and hasattr(value, "__qualname__")):
        return _described(value, {}, ())
    return _plain(value)


def _attributes(value: Any) -> Iterable[tuple[str, Any]]:
    return vars(value).items() if hasattr(value, "__dict__") else ()


def _qualified(thing: Any) -> str:
    module = getattr(thing, "__module__", None)
    return f"{module}.{thing.__qualname__}" if module else str(thing.__qualname__)


def _hash_of_state(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in state.items():
        content = _hash(value) if isinstance(value, Tensor) else repr(value)
        digest.update(f"{name} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _hash(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    content = hashlib.sha256(values.clone().numpy().data).hexdigest()
    return f"{tensor.dtype} {tuple(tensor.shape)} {content}"


def _hash_of_code(code: CodeType) -> str:
    return f"{checksum_of(_texts_of(code)) % 2**64:016x}"


def _texts_of(code: CodeType) -> Iterable[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _texts_of(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        else:
            yield repr(constant)
