"""Splits a call into the tensors that a graph gets and everything else, which is fixed in it."""

import enum
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.target import Chosen, Contrast, as_contrast, is_of_integers
from captum_transformer.captured.contents import is_resolved, resolved
from captum_transformer.errors import CaptureError, InvalidTargetError

_ATOMS = (bool, int, float, complex, str, bytes, type(None), type, enum.Enum)
_OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)


class Shape(NamedTuple):
    """The properties of a tensor that a graph was made for."""

    kind: type
    dtype: torch.dtype
    size: tuple[int, ...]
    strides: tuple[int, ...]
    device: torch.device
    resolved: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "Shape":
        """Returns the shape of a tensor; the stride of a dimension of length one doesn't count."""
        if tensor.layout is not torch.strided:
            raise CaptureError(
                f"A tensor of layout {tensor.layout} can't be an argument of a captured call: "
                "`tensor.to_dense()` can."
            )
        size = tuple(tensor.shape)
        steps = zip(size, tensor.stride(), strict=True)
        strides = tuple(0 if length == 1 else step for length, step in steps)
        kind = Tensor if type(tensor) is nn.Parameter else type(tensor)
        return cls(kind, tensor.dtype, size, strides, tensor.device, is_resolved(tensor))

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        text = f"{kind}{list(self.size)} on {self.device}, strides {list(self.strides)}"
        text += "" if self.resolved else ", conjugated or negated where it is read"
        return text if self.kind is Tensor else f"a {self.kind.__name__} {text}"


class _Gap(NamedTuple):
    """The place of one of the tensors in nested arguments."""

    number: int


class _Again(NamedTuple):
    """The place of a tensor that is the same object as the one at an earlier place."""

    number: int
    earlier: int


@dataclass(frozen=True)
class Role:
    """The role of a tensor in a call.

    Attributes:
        name: the name that a user would use.
        may_be_read: whether Python may decide by its numbers, if the decision is the same in most
            calls, such as that a mask masks nothing or that token ids have no padding.
    """

    name: str
    may_be_read: bool


class Given:
    """One call of a method, split into tensors and what is the same in each call of a graph.

    Args:
        inputs: as the method takes them.
        target: any of Captum's forms of indices, a contrast of two, or a list of these for
            `attribute_targets`.
        several: whether the target is a list of targets.
        args: further arguments by position.
        kwargs: further arguments by name.

    Attributes:
        tensors: the inputs, the targets' indices, and the tensors among the further arguments.
        roles: the role of each tensor.
        key: everything that must be the same for a graph to be the right one.
        inputs: how many of the tensors are inputs.
        targets: how many of the tensors are inputs or targets.
        numbers: for each target that is given as Python numbers, the indices of each sample.
        fixed: the values among the further arguments that are no tensors.
        devices: the types of device on which the call runs.
    """

    def __init__(self, inputs: Any, target: Any, several: bool, args: Any, kwargs: Any) -> None:
        given: Arguments[Any] = Arguments(inputs, args, kwargs)
        self.samples = given.samples
        self.numbers: list[list[list[int]]] = []
        self.fixed: list[Any] = []
        self.tensors: list[Tensor] = list(map(resolved, given.inputs))
        self.inputs = len(self.tensors)
        self.roles = [
            Role(f"input {place}", may_be_read=not tensor.is_floating_point())
            for place, tensor in enumerate(self.tensors)
        ]
        self._device = given.inputs[0].device
        self._several = several
        self._targets = self._form_of_targets(target)
        self.targets = len(self.tensors)
        # Models ask whether two are one object, as attention does of queries and keys.
        self._numbers: dict[int, int] = {}
        args, kwargs = given.further_as_given
        by_place = self._form(args, "additional_forward_args")
        by_name = self._form(kwargs, "additional_forward_kwargs")
        self._further = tuple, by_place, by_name
        kind = "tensor" if isinstance(inputs, Tensor) else given.keys or "tuple"
        self.key = kind, self._targets, self._further, tuple(map(Shape.of, self.tensors))
        self.devices = sorted({tensor.device.type for tensor in self.tensors} | {"cpu"})

    def call(self, function: Any, tensors: Sequence[Tensor], sizes: list[Any]) -> Any:
        """Calls a method with other tensors in place of these.

        Args:
            function: the method.
            tensors: as many tensors as there are in this call.
            sizes: a list to which the sizes of the dimensions that targets index are appended.
        """
        kind, targets, further, _ = self.key
        inputs: Any = tuple(tensors[: self.inputs])
        if isinstance(kind, tuple):
            inputs = dict(zip(kind, inputs, strict=True))
        elif kind == "tensor":
            (inputs,) = inputs
        target = _target(targets, tensors, sizes)
        args, kwargs = _filled(further, tensors)
        return function(inputs, target, args, additional_forward_kwargs=kwargs)

    def own_tensors(self) -> list[Tensor]:
        """Returns other objects than the caller's: tensors in a graph are told apart by identity.

        Those of further arguments are as many as there were.
        """
        shared = {id(tensor): tensor.detach() for tensor in self.tensors[self.targets :]}
        first = [tensor.detach() for tensor in self.tensors[: self.targets]]
        return first + [shared[id(tensor)] for tensor in self.tensors[self.targets :]]

    def example(self) -> "list[Tensor]":
        """Returns tensors like those of this call, all zero."""
        return [
            torch.empty_strided(s.size, s.strides, dtype=s.dtype, device=s.device).zero_()
            for s in self.key[3]
        ]

    def forget(self) -> None:
        """Releases the tensors; their shapes are kept."""
        self.tensors = []

    def as_served(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the call as tensors only, by position and by name, for programs in files."""

        def served(inputs: Any, target: Any, args: Any, additional_forward_kwargs: Any) -> Any:
            return (inputs, _nested(target), *args), additional_forward_kwargs

        found: tuple[tuple[Any, ...], dict[str, Any]] = self.call(served, tensors, [])
        return found

    def notes(self) -> dict[str, Any]:
        """Returns everything that must be the same for a program in a file, as text."""
        kind, targets, further, shapes = self.key
        return {
            "inputs": _named(kind),
            "targets": repr(targets),
            "further arguments": str(_shown(further)),
            "tensors": [f"{r.name}: {s}" for r, s in zip(self.roles, shapes, strict=True)],
        }

    def _form_of_targets(self, target: Any) -> Any:
        if not self._several:
            return self._form_of_target(target)
        if not isinstance(target, (list, tuple)) or not target:
            raise InvalidTargetError(f"A list of targets is needed, got {target!r}.")
        return ("list", *map(self._form_of_target, target))

    def _form_of_target(self, target: Any) -> Any:
        contrast = as_contrast(target)
        if contrast is not None:
            sides = contrast.target, contrast.rather_than
            return ("contrast", *map(self._form_of_target, sides))
        if target is None:
            return None
        indices = self._indices(target)
        self.tensors.append(indices)
        self.roles.append(Role("target", may_be_read=False))
        return _Gap(len(self.tensors) - 1)

    def _indices(self, target: Any) -> Tensor:
        """Returns the target's indices for each sample: ``(samples, dimensions)``."""
        if isinstance(target, Tensor):
            known = is_of_integers(target)
            if not known or (target.numel() != 1 and target.shape != (self.samples,)):
                raise InvalidTargetError(
                    f"A target of dtype {target.dtype} and shape {tuple(target.shape)} was given: "
                    f"a tensor has one integer, or one for each of the {self.samples} samples."
                )
            indices = target.detach().to(self._device, torch.long).reshape(-1, 1)
            if len(indices) > 1:  # each sample's is not counted from the end, as in the method
                indices = indices.masked_fill(indices < 0, torch.iinfo(torch.long).max)
            return indices.expand(self.samples, 1).contiguous()
        each = target if isinstance(target, list) else [target] * self.samples
        rows = [list(t) if isinstance(t, tuple) else [t] for t in each]
        if len(rows) != self.samples or len({len(row) for row in rows}) != 1:
            raise InvalidTargetError(
                f"Targets for {len(rows)} samples were given, there are {self.samples}; each has "
                f"as many indices: {target!r}."
            )
        if not all(isinstance(index, Integral) for row in rows for index in row):
            raise CaptureError(
                f"target {target!r} was given. A captured call takes integers and tensors of "
                "integers, since it passes them as tensors."
            )
        if isinstance(target, list) and any(i < 0 for i in target if not isinstance(i, tuple)):
            raise InvalidTargetError(
                f"target {target!r} was given: the index for all samples may be counted from the "
                "end, indices for each sample may not."
            )
        self.numbers.append(rows)
        return torch.tensor(rows, dtype=torch.long, device=self._device)

    def _form(self, item: Any, place: str) -> Any:
        if isinstance(item, Tensor):
            number = len(self.tensors)
            earlier = self._numbers.setdefault(id(item), number)
            self.tensors.append(resolved(item) if earlier == number else self.tensors[earlier])
            self.roles.append(Role(place, may_be_read=True))
            return _Gap(number) if earlier == number else _Again(number, earlier)
        if type(item) in (tuple, list):
            parts = (self._form(part, f"{place}[{n}]") for n, part in enumerate(item))
            return (type(item), *parts)
        if type(item) is dict:
            return (dict, *((k, self._form(part, f"{place}[{k!r}]")) for k, part in item.items()))
        if isinstance(item, (*_ATOMS, *_OF_TORCH)) or inspect.isroutine(item):
            self.fixed.append(item)
            # Its text distinguishes zeros of different signs.
            return type(item), item, str(item) if isinstance(item, (float, complex)) else ""
        raise CaptureError(
            f"{place} is a {type(item).__name__}. A captured call takes "
            "tensors, numbers, texts and functions, in tuples, lists and dicts: the contents "
            "of other objects could change unnoticed."
        )


def _target(form: Any, tensors: Sequence[Tensor], sizes: list[Any]) -> Any:
    if form is None:
        return None
    if isinstance(form, _Gap):
        return Chosen(tensors[form.number], sizes.append)
    kind, *parts = form
    targets = [_target(part, tensors, sizes) for part in parts]
    return Contrast(*targets) if kind == "contrast" else targets


def _filled(form: Any, tensors: Sequence[Tensor]) -> Any:
    """Returns nested arguments with tensors in their places."""
    if isinstance(form, (_Gap, _Again)):
        return tensors[form.number]
    kind, *parts = form
    if kind is dict:
        return {key: _filled(part, tensors) for key, part in parts}
    if kind in (tuple, list):
        return kind(_filled(part, tensors) for part in parts)
    return parts[0]


def differing(given: Given, captured: Any) -> Iterator[str]:
    """Yields how a call differs from a captured one, given the key of that."""
    kind, targets, further, shapes = given.key
    its_kind, its_targets, its_further, its_shapes = captured
    if kind != its_kind:
        yield f"inputs are given as {_named(kind)}, and were as {_named(its_kind)}"
    if targets != its_targets:
        yield "the target has another form: as many indices, contrasts and targets as there were"
    if further != its_further:
        yield f"further arguments are {_shown(further)}, and were {_shown(its_further)}"
    if len(shapes) != len(its_shapes):
        yield f"{len(shapes)} tensors are given, and there were {len(its_shapes)}"
    for role, one, other in zip(given.roles, shapes, its_shapes, strict=False):
        if one != other:
            yield f"{role.name} is {one}, and was {other}"


def differing_forms(now: dict[str, Any], captured: dict[str, Any]) -> Iterator[str]:
    """Yields how the notes of a call differ from those of a captured one."""
    for name, value in now.items():
        if value != captured[name]:
            yield f"{name}: {value}, which were {captured[name]}"


def _nested(target: Any) -> Any:
    """Returns targets as tensors in tuples and lists; single indices have one dimension."""
    if isinstance(target, Chosen):
        indices = target.indices
        return indices.squeeze(1) if indices.shape[1] == 1 else indices
    if isinstance(target, Contrast):
        return _nested(target.target), _nested(target.rather_than)
    return list(map(_nested, target)) if isinstance(target, list) else target


def _named(kind: Any) -> str:
    return f"a mapping of {list(kind)}" if isinstance(kind, tuple) else f"a {kind}"


def _shown(form: Any) -> Any:
    if isinstance(form, _Gap):
        return "a tensor"
    if isinstance(form, _Again):
        return "the same tensor again"
    kind, *parts = form
    if kind is dict:
        return {key: _shown(part) for key, part in parts}
    return kind(map(_shown, parts)) if kind in (tuple, list) else parts[0]
