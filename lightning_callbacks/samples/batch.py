"""The samples that are explained, and how they are read from a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_callbacks.samples.nested import map_tensors

BatchToInputs: TypeAlias = Callable[[Any], Any]
"""Reads ``(inputs, labels)`` or ``(inputs, labels, further)`` from a batch.

``inputs`` is a tensor or a tuple, which the model gets by position, or a mapping, which it gets by
name; ``further`` is a tuple of arguments by position or a mapping of arguments by name.
"""

INPUT_KEYS = (
    "pixel_values",
    "image",
    "images",
    "img",
    "x",
    "input",
    "inputs",
    "input_values",
    "input_features",
    "input_ids",
)
"""The names of a mapping's entries that can be inputs."""

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""The names of a batch's entries that can be labels; the first one that exists is used."""


@dataclass(frozen=True)
class Samples:
    """Samples in the form that Captum methods accept.

    Attributes:
        inputs: One tensor for each input of the model, with the samples in its first dimension.
        labels: Class ids ``(B,)``, or one value per class ``(B, C)`` for multiple or soft labels,
            or None.
        additional_forward_args: Further arguments of the model by position. Tensors, including
            nested ones, whose first dimension has the length B have an entry for each sample;
            everything else is the same for all samples.
        additional_forward_kwargs: Further arguments of the model by name.
        names: The inputs' names, if the model takes them by name.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    additional_forward_args: tuple[Any, ...] = ()
    additional_forward_kwargs: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] | None = None

    @property
    def named_inputs(self) -> dict[str, Tensor]:
        """The inputs that the model takes by name."""
        return {} if self.names is None else dict(zip(self.names, self.inputs, strict=True))

    def input_names(self) -> tuple[str, ...]:
        """Returns the inputs' names, or ``input_0``, ``input_1``, ... if they have none."""
        return self.names or tuple(f"input_{number}" for number in range(len(self.inputs)))

    def run(self, module: Callable[..., Any]) -> Any:
        """Calls a model with the inputs and the further arguments.

        Args:
            module: The model.

        Returns:
            The model's output.
        """
        inputs = self.inputs if self.names is None else ()
        return module(
            *inputs,
            *self.additional_forward_args,
            **self.named_inputs,
            **self.additional_forward_kwargs,
        )

    def __len__(self) -> int:
        return len(self.inputs[0])

    def select(self, rows: Sequence[int]) -> Samples:
        """Copies some of the samples, or the same sample several times.

        Args:
            rows: The indices of the samples.

        Returns:
            New samples that share no memory with these.
        """

        def pick(tensor: Tensor) -> Tensor:
            if tensor.dim() and len(tensor) == len(self):
                return tensor.detach()[torch.tensor(rows, device=tensor.device)]
            return tensor.detach().clone()

        return self.map(pick)

    def to(self, device: torch.device | str) -> Samples:
        """Moves the samples.

        Args:
            device: The device to move them to.

        Returns:
            The samples on the device.
        """
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        """Applies a function to each tensor.

        Args:
            function: Takes a tensor and returns one.

        Returns:
            New samples with the returned tensors.
        """
        return Samples(
            tuple(function(tensor) for tensor in self.inputs),
            None if self.labels is None else function(self.labels),
            map_tensors(self.additional_forward_args, function),
            map_tensors(self.additional_forward_kwargs, function),
            self.names,
        )


def read_batch(
    batch: Any, forward: Callable[..., Any], batch_to_inputs: BatchToInputs | None = None
) -> Samples:
    """Reads the samples of a batch.

    Without `batch_to_inputs`, a batch may be a tensor; ``(inputs, labels)``; a mapping; or
    ``(mapping, labels)``. A dataclass, or a named tuple of more than two fields, is a mapping of
    its fields. A mapping is passed by name, as in ``module(**batch)``: its inputs are the entries
    named like `forward`'s first parameter or one of `INPUT_KEYS`, its labels are the first of
    `LABEL_KEYS`, and all other entries that `forward` accepts, such as ``attention_mask``, are
    further arguments. If `forward` accepts none of the inputs by name, its first parameter gets the
    first of them.

    Args:
        batch: The batch.
        forward: The function that will be given the inputs.
        batch_to_inputs: A function that reads the batch instead.

    Returns:
        All samples of the batch, without copying tensors.

    Raises:
        ValueError: If the batch has another form.

    Example:
        >>> batch = {"input_ids": torch.ones(2, 5).long(), "labels": torch.tensor([0, 1])}
        >>> read_batch(batch, lambda input_ids, attention_mask=None: None).labels
        tensor([0, 1])
    """
    if batch_to_inputs is not None:
        parts = batch_to_inputs(batch)
        # A list is accepted, too, since a DataLoader converts pairs to lists.
        if not isinstance(parts, (tuple, list)) or len(parts) not in (2, 3):
            raise ValueError(
                "batch_to_inputs must return (inputs, labels) or (inputs, labels, further "
                f"arguments), got {_describe(parts)}."
            )
        return _samples(*parts)
    batch = _by_name(batch)
    if isinstance(batch, Mapping):
        return _samples(*_read_mapping(batch, forward))
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if pair and isinstance(batch[0], Mapping):
        inputs, _, further = _read_mapping(batch[0], forward)
        return _samples(inputs, batch[1], further)
    if pair:
        return _samples(*batch)
    if isinstance(batch, Tensor):
        return _samples(batch)
    raise ValueError(f"The batch is {_describe(batch)}. {_HOW}")


_HOW = (
    "What can be read is a tensor, (inputs, labels), or a mapping with usual names; for anything "
    "else pass batch_to_inputs=, a function that returns (inputs, labels) or "
    "(inputs, labels, further arguments)."
)


def _by_name(batch: Any) -> Any:
    """Returns the fields of a dataclass or of a named tuple with more than two, by name."""
    if is_dataclass(batch) and not isinstance(batch, (type, Mapping)):
        return {part.name: getattr(batch, part.name) for part in fields(batch)}
    names = getattr(batch, "_fields", ())
    return dict(zip(names, batch, strict=True)) if len(names) > 2 else batch


def _samples(inputs: Any, labels: Any = None, further: Any = None) -> Samples:
    named = isinstance(inputs, Mapping)
    by_name = isinstance(further, Mapping)
    positional = further if isinstance(further, tuple) else () if further is None else (further,)
    if named and positional and not by_name:
        raise ValueError(
            "batch_to_inputs has returned inputs by name, but further arguments by position: "
            "return these by name, too, in a mapping."
        )
    return Samples(
        _tensors(tuple(inputs.values()) if named else inputs),
        _labels(labels),
        () if by_name else positional,
        dict(further) if by_name else {},
        tuple(inputs) if named else None,
    )


def _labels(labels: Any) -> Tensor | None:
    if labels is None:
        return None
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"The labels are {_describe(labels)}, and no numbers. Pass batch_to_inputs= that "
            "returns class ids, which it looks up for texts and chooses of the boxes of a "
            'detection, or None as labels with classes=("predicted",) or class ids.'
        ) from None


def _read_mapping(
    batch: Mapping[str, Any], forward: Callable[..., Any]
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Returns inputs, labels and further arguments of a batch with argument names as keys."""
    parameters = inspect.signature(forward).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name: p for p in parameters if p.kind in by_name}
    label_key = next((key for key in LABEL_KEYS if key in batch), None)
    first = next(iter(named), "")
    usual = [k for k in dict.fromkeys((first, *INPUT_KEYS)) if k in batch and k != label_key]
    taken = [key for key in usual if takes_all or key in named]
    if not usual or not (taken or named):
        raise ValueError(f"No input was found in the batch, {_describe(batch)}. {_HOW}")
    if taken:
        inputs = {key: batch[key] for key in taken if _is_as_long(batch[key], batch[taken[0]])}
    else:
        inputs = {first: batch[usual[0]]}
    further = {
        key: value
        for key, value in batch.items()
        if key not in inputs and key != label_key and (takes_all or key in named)
    }
    for name, parameter in named.items():
        if name in inputs or name in further or parameter.default is not parameter.empty:
            continue
        if name != label_key:
            raise ValueError(
                f"The model's forward needs {name!r}, which the batch doesn't have: it is "
                f"{_describe(batch)}. {_HOW}"
            )
        further[name] = batch[name]
    return inputs, None if label_key is None else batch[label_key], further


def _is_as_long(value: Any, first: Any) -> bool:
    """Returns whether an input has a row for each sample, unlike the texts CLIP chooses from."""
    return not isinstance(value, Tensor) or value.shape[:1] == first.shape[:1]


def _tensors(inputs: Any) -> tuple[Tensor, ...]:
    tensors = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in tensors):
        raise ValueError(
            f"The inputs must be a tensor or a tuple of tensors, got {_describe(inputs)}. {_HOW}"
        )
    if len({len(tensor) for tensor in tensors}) > 1:
        raise ValueError(
            "All inputs must have the samples in their first dimension, got the shapes "
            f"{[tuple(tensor.shape) for tensor in tensors]}."
        )
    return tensors


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of the shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {sorted(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {[type(item).__name__ for item in value]}"
    return f"a {type(value).__name__}"
