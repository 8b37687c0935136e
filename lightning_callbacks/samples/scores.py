"""Finds the scores of the classes in a model's output."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_transformer.calling.target import main_output, tensors_of_scores
from captum_transformer.errors import AmbiguousOutputError


def class_scores(output: Any) -> Tensor:
    """Finds the scores of the classes in a model's output.

    Args:
        output: As for `read_output`.

    Returns:
        ``(B, C)`` or ``(B,)``.

    Raises:
        ValueError: If the output isn't one score per class, or several parts of it may be the
            scores.
    """
    output = main_output(getattr(output, "logits", output))
    found = [("", output)] if isinstance(output, Tensor) else tensors_of_scores(output)
    # A class id selects from two dimensions, so one score per sample next to them isn't ambiguous.
    fits = [part for part in found if part[1].dim() == 2] or [p for p in found if p[1].dim() == 1]
    if len(fits) == 1:
        return fits[0][1]
    shapes = ", ".join(f"{name}: {tuple(t.shape)}".lstrip(": ") for name, t in fits or found)
    if fits:
        raise AmbiguousOutputError(
            f"The model returned {shapes}, and each of them may be the scores of the classes. "
            "Explain a model that returns these alone: a module around it, or, with an "
            "AttributionMonitor, forward=lambda module, x: "
            f"module(x){fits[-1][0] if fits[-1][0][0] == '[' else [fits[-1][0]]}."
        )
    raise ValueError(
        "A class is explained, so the model must return one score per class, (batch, classes), got "
        f"{shapes or type(output).__name__}. Wrap it in a module that computes them, as by a mean "
        "over the places of a segmentation; an AttributionMonitor also takes "
        "forward=lambda module, x: ..."
    )
