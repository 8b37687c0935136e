"""Reads samples that the user passes, instead of those of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from captum_transformer.calling.copies import copied
from captum_transformer.calling.isolation import isolated
from lightning_callbacks.samples.batch import BatchToInputs
from lightning_callbacks.samples.fixed import FixedSamples, Share
from lightning_callbacks.samples.transfer import transferred
from lightning_callbacks.shared.flavors import MisconfigurationException

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


def given_samples(
    samples: Any,
    trainer: Trainer,
    module: LightningModule,
    forward: Callable[..., Any],
    share: Share,
    batch_to_inputs: BatchToInputs | None,
) -> FixedSamples:
    """Reads samples like batches of a loader, including the hooks of modules and data modules.

    Args:
        samples: A batch in the loader's format.
        trainer: The trainer, with the module on its device.
        module: The trainer's module.
        forward: The function that will be given the inputs.
        share: Which of them this process explains.
        batch_to_inputs: Reads the batch.

    Returns:
        The samples.

    Raises:
        MisconfigurationException: If they can't be read.
    """
    try:
        # Isolated, because hooks and `batch_to_inputs` may do anything.
        with isolated(module), _validating(trainer), torch.no_grad():
            batch = transferred(copied(samples), trainer, module)
            return FixedSamples.of(batch, forward, share, batch_to_inputs)
    except Exception as error:
        raise MisconfigurationException(
            f"The `samples` of AttributionMonitor can't be read: {error}"
        ) from error


@contextmanager
def _validating(trainer: Trainer) -> Iterator[None]:
    """Runs hooks in the validation stage, since in training they may, e.g., augment samples."""
    state, stage = trainer.state, trainer.state.stage
    if trainer.training:
        trainer.validating = True
    try:
        yield
    finally:
        state.stage = stage
