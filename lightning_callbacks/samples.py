"""The samples that are explained, and how they are read from a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

BatchToInputs: TypeAlias = Callable[[Any], Any]
"""Reads ``(inputs, labels)`` or ``(inputs, labels, additional_forward_args)`` from a batch."""

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
"""The names under which a batch's input is looked for, the first that is there."""

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""The names under which a batch's labels are looked for, the first that is there."""


@dataclass(frozen=True)
class Samples:
    """Some samples, in the form in which a Captum method takes them.

    Attributes:
        inputs: One tensor for each input of the model, with the samples in its first dimension.
        labels: Class ids ``(B,)``, or one value per class ``(B, C)`` for several labels or soft
            ones, or None.
        additional_forward_args: What the model takes besides. Tensors, also nested ones, whose
            first dimension has the length B belong to the samples; all else is the same for each.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    additional_forward_args: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs[0])

    def select(self, rows: Sequence[int]) -> Samples:
        """Copies some of the samples, or the same sample several times.

        Args:
            rows: Their numbers.

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
            device: Where to.

        Returns:
            The samples there.
        """
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        """Applies a function to each tensor.

        Args:
            function: Takes a tensor and returns one.

        Returns:
            The samples made of what it returned.
        """
        return Samples(
            tuple(function(tensor) for tensor in self.inputs),
            None if self.labels is None else function(self.labels),
            apply_to_collection(self.additional_forward_args, Tensor, function),
        )


def read_batch(
    batch: Any, forward: Callable[..., Any], batch_to_inputs: BatchToInputs | None = None
) -> Samples:
    """Reads the samples of a batch.

    Without `batch_to_inputs`, a batch may be a tensor; ``(inputs, labels)``; or a mapping. A
    mapping's input is what has the name of `forward`'s first parameter, or else the first of
    `INPUT_KEYS`; its labels are the first of `LABEL_KEYS`; and what has the names of `forward`'s
    other parameters, such as ``attention_mask``, goes with them.

    Args:
        batch: The batch.
        forward: The function that will be given the inputs.
        batch_to_inputs: Reads the batch instead.

    Returns:
        All samples of the batch, as they lie in it: nothing is copied.

    Raises:
        ValueError: If the batch has another form.

    Example:
        >>> batch = {"input_ids": torch.ones(2, 5).long(), "labels": torch.tensor([0, 1])}
        >>> read_batch(batch, lambda input_ids, attention_mask=None: None).labels
        tensor([0, 1])
    """
    labels: Any = None
    arguments: Any = ()
    if batch_to_inputs is not None:
        parts = batch_to_inputs(batch)
        if not isinstance(parts, tuple) or len(parts) not in (2, 3):
            raise ValueError(
                "batch_to_inputs must return (inputs, labels) or (inputs, labels, "
                f"additional_forward_args), got {_describe(parts)}."
            )
        inputs, labels, arguments = (*parts, ())[:3]
    elif isinstance(batch, Mapping):
        inputs, labels, arguments = _read_mapping(batch, forward)
    elif isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Mapping):
        inputs, _, arguments = _read_mapping(batch[0], forward)
        labels = batch[1]
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
    elif isinstance(batch, Tensor):
        inputs = batch
    else:
        raise ValueError(f"The batch is {_describe(batch)}. {_HOW}")
    if arguments is None:
        arguments = ()
    return Samples(
        _tensors(inputs),
        None if labels is None else torch.as_tensor(labels),
        arguments if isinstance(arguments, tuple) else (arguments,),
    )


_HOW = (
    "What can be read is a tensor, (inputs, labels), or a mapping with usual names; for anything "
    "else pass batch_to_inputs=, a function that returns (inputs, labels) or "
    "(inputs, labels, additional_forward_args)."
)


def _read_mapping(batch: Mapping[str, Any], forward: Callable[..., Any]) -> tuple[Any, Any, Any]:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in inspect.signature(forward).parameters.values() if p.kind in positional]
    label_key = next((key for key in LABEL_KEYS if key in batch), None)
    usual = [parameter.name for parameter in parameters[:1]] + list(INPUT_KEYS)
    input_key = next((key for key in usual if key in batch and key != label_key), None)
    if input_key is None:
        raise ValueError(f"No input was found in the batch, {_describe(batch)}. {_HOW}")
    arguments = []
    for parameter in parameters[1:]:
        given = parameter.name in batch and parameter.name not in (input_key, label_key)
        value = batch[parameter.name] if given else parameter.default
        if value is inspect.Parameter.empty:
            raise ValueError(
                f"The model's forward needs {parameter.name!r}, which the batch doesn't have: it "
                f"is {_describe(batch)}. {_HOW}"
            )
        arguments.append((given, value))
    # Defaults at the end need not be passed.
    while arguments and not arguments[-1][0]:
        arguments.pop()
    labels = None if label_key is None else batch[label_key]
    return batch[input_key], labels, tuple(value for _, value in arguments)


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
