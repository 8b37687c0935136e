"""Finds the patches that a model cuts its images into."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from captum_transformer import describe
from lightning_callbacks.samples.batch import Samples

Grid: TypeAlias = tuple[int, int] | None
"""The numbers of rows and columns of patches that an image is cut into; None if unknown."""


def patch_grids(model: Callable[..., Any], samples: Samples) -> Sequence[Grid]:
    """Finds the patches of each input, by running the model on the first sample.

    Args:
        model: The model.
        samples: Samples on the model's device; all of the same size.

    Returns:
        One grid per input. None for inputs that aren't cut into equal patches, and for all inputs
        of a model that can't be traced.
    """
    unknown = [None] * len(samples.inputs)
    if all(tensor.dim() != 4 for tensor in samples.inputs):
        return unknown  # no image: saves the forward pass
    first = samples.select([0])
    try:
        seen = describe(
            model,
            first.named_inputs or first.inputs,
            first.additional_forward_args or None,
            additional_forward_kwargs=first.additional_forward_kwargs or None,
        )
    except Exception:
        # The methods report what is wrong, or work without a trace, as those of Captum do.
        return unknown
    return [seen.grids.get(name) for name in seen.inputs]
