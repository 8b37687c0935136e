"""Runs a model on many variations of each sample, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from captum._utils.progress import progress
from captum._utils.typing import TargetType
from torch import Tensor

from captum_transformer.calling.arguments import rows_of
from captum_transformer.calling.copies import copied
from captum_transformer.calling.isolation import explaining, modules_of
from captum_transformer.calling.target import main_output, selected_scores
from captum_transformer.errors import AmbiguousOutputError, InvalidInputError
from captum_transformer.metrics.curve import Curve
from captum_transformer.trace.numeric import accumulation_dtype


class Variations:
    """A model, and the samples on whose variations it runs.

    Variation number ``f * B + b`` is the ``f``-th one of sample ``b``.

    Args:
        forward_func: The model or any callable that runs one.
        inputs: The inputs that vary: a tensor or a tuple of tensors, passed by position, or a
            mapping of names to tensors, passed by name.
        additional_forward_args: Further arguments by position, as in Captum.
        additional_forward_kwargs: Further arguments by name. In both, tensors (also nested ones)
            with as many rows as there are samples have one row per sample.

    Attributes:
        forward_func: The model.
        tensors: The inputs.
        samples: How many samples there are.

    Raises:
        InvalidInputError: If the inputs have another type, or a name is given twice.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Any,
        additional_forward_args: Any = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.forward_func = forward_func
        self._names = tuple(inputs) if isinstance(inputs, Mapping) else None
        tensors = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
        tensors = (tensors,) if isinstance(tensors, Tensor) else tensors
        self._args = tuple(_format_additional_forward_args(additional_forward_args) or ())
        self._kwargs = dict(additional_forward_kwargs or {})
        self._check(tensors)
        self.tensors: tuple[Tensor, ...] = tensors
        self.samples = len(self.tensors[0])

    def _check(self, tensors: Any) -> None:
        if (
            not isinstance(tensors, tuple)
            or not tensors
            or not all(isinstance(t, Tensor) and t.ndim and t.numel() for t in tensors)
            or len({t.shape[:1] for t in tensors}) > 1
        ):
            raise InvalidInputError(
                "inputs must be a tensor, a tuple of tensors or a mapping of names to tensors, "
                f"with the samples along dimension 0, as many in each: got {_describe(tensors)}."
            )
        if twice := [name for name in self._names or () if name in self._kwargs]:
            raise InvalidInputError(
                f"{twice} are among both inputs and additional_forward_kwargs: give each once."
            )
        if self._names is not None and self._args:
            raise InvalidInputError(
                "inputs are given by name, and additional_forward_args by position: their "
                "positions are ambiguous. Pass them by name, as additional_forward_kwargs."
            )

    def run(
        self,
        batches: Iterable[tuple[tuple[Tensor, ...], Tensor]],
        *,
        total: int,
        show_progress: bool = False,
        description: str = "",
    ) -> Tensor:
        """Runs the model on all variations, without gradients and in evaluation mode.

        Args:
            batches: The changed inputs, and the numbers of the variations. Each variation occurs
                once.
            total: The number of batches.
            show_progress: Whether to show a progress bar.
            description: The label of the progress bar.

        Returns:
            The scores ``(B, F, classes)``, in at least single precision.

        Raises:
            AmbiguousOutputError: If the model returns no scores ``(B,)`` or ``(B, classes)``.
        """
        shown = progress(batches, desc=description, total=total) if show_progress else batches
        outputs, numbers = [], []
        modules = modules_of(self.forward_func)
        with explaining(modules, list(self.tensors)), torch.no_grad():
            for tensors, variations in shown:
                outputs.append(self._scores(tensors, variations % self.samples))
                numbers.append(variations)
        found = torch.cat(outputs)
        ordered = torch.empty_like(found)
        ordered[torch.cat(numbers)] = found
        return ordered.view(-1, self.samples, ordered.shape[1]).transpose(0, 1)

    def _scores(self, tensors: Sequence[Tensor], rows: Tensor) -> Tensor:
        further = (rows_of(a, rows, self.samples) for a in (self._args, self._kwargs))
        args, kwargs = copied(tuple(further))
        if self._names is None:
            output = self.forward_func(*tensors, *args, **kwargs)
        else:
            named = dict(zip(self._names, tensors, strict=True))
            output = self.forward_func(**named, **kwargs)
        scores = main_output(output)
        if (
            not isinstance(scores, Tensor)
            or not scores.is_floating_point()
            or scores.ndim not in (1, 2)
            or len(scores) != len(rows)
        ):
            raise AmbiguousOutputError(
                f"For {len(rows)} samples the model returned {_describe(scores)}; needed are "
                "scores of shape (B,) or (B, classes). Pass a function that returns them, for "
                "instance `lambda x: model(x).logits`."
            )
        scores = scores.to(accumulation_dtype(scores.dtype))
        return scores if scores.ndim == 2 else scores[:, None]

    def further_with(self, shape: tuple[int, int]) -> list[str]:
        """Returns the names of further arguments whose first two dimensions are ``shape``."""
        named = {f"additional_forward_args[{i}]": a for i, a in enumerate(self._args)}
        named |= {f"additional_forward_kwargs[{k!r}]": a for k, a in self._kwargs.items()}
        return [name for name, a in named.items() if isinstance(a, Tensor) and a.shape[:2] == shape]


def run_replacing(
    variations: Variations,
    changed: Callable[[int], Tensor],
    count: int,
    *,
    perturbations_per_eval: int,
    show_progress: bool,
    description: str,
) -> Tensor:
    """Runs a model on variations of the same shape, each of all samples at once.

    Args:
        variations: The model and the samples.
        changed: Returns the ``f``-th variation of the input for all samples, ``(B, ...)``.
        count: The number of variations of each sample.
        perturbations_per_eval: How many of them go through the model together.
        show_progress: Whether to show a progress bar.
        description: The label of the progress bar.

    Returns:
        The scores ``(B, count, classes)``.
    """
    check_perturbations_per_eval(perturbations_per_eval)
    samples, device = variations.samples, variations.tensors[0].device

    def batches() -> Iterable[tuple[tuple[Tensor, ...], Tensor]]:
        for start in range(0, count, perturbations_per_eval):
            stop = min(start + perturbations_per_eval, count)
            numbers = torch.arange(start * samples, stop * samples, device=device)
            yield (torch.cat([changed(f) for f in range(start, stop)]),), numbers

    return variations.run(
        batches(),
        total=-(-count // perturbations_per_eval),
        show_progress=show_progress,
        description=description,
    )


def check_perturbations_per_eval(perturbations_per_eval: int) -> None:
    """Raises an error unless the number is positive.

    Raises:
        InvalidInputError: If the number is not positive.
    """
    if perturbations_per_eval < 1:
        raise InvalidInputError(
            f"perturbations_per_eval must be at least 1, got {perturbations_per_eval}."
        )


def read_curve(
    fractions: Sequence[float], outputs: Tensor, target: TargetType, *, softmax: bool
) -> Curve:
    """Returns the curve of the target's score.

    Args:
        fractions: The ``F`` fractions.
        outputs: The model's scores ``(B, F, classes)``.
        target: The class, in any of Captum's forms.
        softmax: Whether the score is the probability.

    Raises:
        InvalidInputError: If probabilities are requested, but there is only one class.
        InvalidTargetError: If the target doesn't fit the output.
    """
    samples, count, classes = outputs.shape
    if softmax and classes == 1:
        raise InvalidInputError(
            "The model returns one score per sample: the softmax of that is 1. Pass softmax=False "
            "for the score itself."
        )
    values = outputs.softmax(2) if softmax else outputs
    scores = [selected_scores(values[:, f], target, samples) for f in range(count)]
    predictions = outputs.argmax(2) if classes > 1 else None
    return Curve(outputs.new_tensor(fractions), torch.stack(scores, 1), predictions)


def _describe(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)} and {found.dtype}"
    if isinstance(found, Mapping):
        return f"a mapping of {', '.join(f'{k}: {_describe(v)}' for k, v in found.items())}"
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of ({', '.join(map(_describe, found))})"
    return f"a {type(found).__name__}"
