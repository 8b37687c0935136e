"""Samples that are passed, rather than taken from a loader."""

from __future__ import annotations

from typing import Any

from torch import nn

from captum_transformer.calling.isolation import isolated
from lightning_callbacks.fixed_samples import FixedSamples, Share
from lightning_callbacks.flavors import MisconfigurationException
from lightning_callbacks.samples import BatchToInputs


def given_samples(
    samples: Any, module: nn.Module, share: Share, batch_to_inputs: BatchToInputs | None
) -> FixedSamples | None:
    """Reads them before any time is spent.

    Args:
        samples: A batch such as a loader yields, or None.
        module: The model.
        share: Which of them this process explains.
        batch_to_inputs: Reads the batch.

    Returns:
        The samples; None if none were passed.

    Raises:
        MisconfigurationException: If they can't be read.

    Example:
        >>> import torch
        >>> given_samples(torch.ones(3, 2), torch.nn.Linear(2, 2), Share(), None).numbers
        [[0, 1, 2]]
    """
    if samples is None:
        return None
    try:
        # Isolated, because `batch_to_inputs` may do anything.
        with isolated(module):
            return FixedSamples.of(samples, module.forward, share, batch_to_inputs)
    except Exception as error:
        raise MisconfigurationException(
            f"The `samples` of AttributionMonitor can't be read: {error}"
        ) from error
