"""The golden cases: a model, its inputs, and what the authors' code computes for them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parents[2] / "data"
CASES = tuple(sorted(path.stem for path in DATA.glob("*.safetensors")))


@dataclass(frozen=True)
class Stored:
    """What lies in a case's two files.

    Attributes:
        name: of the case.
        manifest: how its model is made.
        state: the model's state dict, as stored.
        inputs: the tensors named ``input.*``, floating point in float64.
        expected: the tensors named ``expected.*``.
    """

    name: str
    manifest: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]

    @classmethod
    def of(cls, name: str) -> "Stored":
        manifest = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))["modern_model"]
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "input": {}, "expected": {}}
        for key, tensor in load_file(DATA / f"{name}.safetensors").items():
            part, _, key = key.partition(".")
            parts[part][key] = tensor
        inputs = {k: t.double() if t.is_floating_point() else t for k, t in parts["input"].items()}
        return cls(name, manifest, parts["model"], inputs, parts["expected"])

    def targets(self) -> list[Tensor]:
        """The stored targets, two for each sample, in Captum's form."""
        return list(self.inputs["targets"].unbind(1))


@dataclass(frozen=True)
class Case:
    """A golden case as it is given to a method.

    Attributes:
        model: the model, or a function that gives one its arguments.
        inputs: what is explained: a tensor or, for several inputs, a tuple of them.
        targets: what is explained of it, once per entry, in any of Captum's forms.
        expected: the expected tensors, with the targets along dimension 1.
        extra: additional arguments of the model, as Captum takes them.
    """

    model: Callable[..., Any]
    inputs: Any
    targets: list[Any]
    expected: dict[str, Tensor]
    extra: tuple[Any, ...] = ()

    def per_target(self, compute: Callable[[Any], Tensor]) -> Tensor:
        return torch.stack([compute(target) for target in self.targets], 1)

    def instead(self, model: Callable[..., Any], inputs: Any) -> "Case":
        """The same case, entered at another point."""
        return replace(self, model=model, inputs=inputs)


# Loads a case with one of the attention implementations of its model.
Loader = Callable[[Stored, str], Case]

_LOADERS: dict[str, tuple[Loader, tuple[str, ...]]] = {}


def loads(*names: str, attentions: tuple[str, ...] = ("sdpa",)) -> Callable[[Loader], Loader]:
    """Marks a function as the one that loads some cases, with these attention implementations."""

    def register(loader: Loader) -> Loader:
        _LOADERS.update(dict.fromkeys(names, (loader, attentions)))
        return loader

    return register


@cache
def load_stored(name: str) -> Stored:
    """What lies in a case's files."""
    return Stored.of(name)


@cache
def load_case(name: str, attention: str | None = None) -> Case:
    """Loads a case in float64, with the first of its attention implementations by default."""
    loader, attentions = _LOADERS[name]
    return loader(load_stored(name), attention or attentions[0])


def attentions_of(name: str) -> tuple[str, ...]:
    """The attention implementations that a case can be loaded with."""
    return _LOADERS[name][1]
