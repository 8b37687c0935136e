"""Checks arguments of a `RelevanceWriter` before the prediction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_callbacks.data_sets.explaining import Explaining
from lightning_callbacks.explanations.checks import check_strategy
from lightning_callbacks.samples.transfer import overridden_hooks, transferred
from lightning_callbacks.shared.flavors import BasePredictionWriter, MisconfigurationException

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

T = TypeVar("T")


def check_prediction(trainer: Trainer, module: LightningModule) -> None:
    """Refuses trainers and modules whose predictions can't be written.

    Args:
        trainer: The trainer.
        module: The module.

    Raises:
        MisconfigurationException: If the module is no `ExplainerModule`, there are two writers, or
            the strategy splits the module's parameters.
    """
    if not isinstance(module, Explaining):
        raise MisconfigurationException(
            f"RelevanceWriter writes what an ExplainerModule explains, got {type(module).__name__}:"
            " trainer.predict(ExplainerModule(model, AttnLRP), loader)."
        )
    writers = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, BasePredictionWriter) and hasattr(callback, "remaining")
    ]
    if len(writers) > 1:
        raise MisconfigurationException(
            f"The trainer has {len(writers)} RelevanceWriters, and each would choose the samples "
            "that are to be explained. Pass one."
        )
    check_strategy(trainer.strategy)
    if trainer.is_global_zero and trainer.predict_loop.return_predictions:
        warnings.warn(
            "Trainer.predict collects all explanations in memory, though they are written to disk: "
            "pass trainer.predict(..., return_predictions=False).",
            stacklevel=2,
        )


def loader_of(trainer: Trainer) -> Any:
    """Returns the loader whose batches are explained.

    Args:
        trainer: The trainer, whose loaders are there.

    Returns:
        The only loader.
    """
    loader = trainer.predict_dataloaders
    return loader[0] if isinstance(loader, (list, tuple)) else loader


def hooks_of(trainer: Trainer, module: LightningModule) -> Callable[[Any], Any] | None:
    """Returns the function that changes a batch on its way from the loader to the model.

    Args:
        trainer: The trainer.
        module: Its module.

    Returns:
        A function that applies the hooks, or None if the module and the data module have none.
    """
    owners = (module, trainer.datamodule)  # type: ignore[attr-defined]
    if not any(overridden_hooks(owner) for owner in owners if owner is not None):
        return None
    return lambda batch: transferred(batch, trainer, module)


def number_of_samples(trainer: Trainer) -> int:
    """Returns the number of samples of the data set.

    Args:
        trainer: The trainer, whose loaders are there.

    Returns:
        Their number.

    Raises:
        MisconfigurationException: If there are several loaders, or the data set has no length.
    """
    if (count := trainer.predict_loop.num_dataloaders) != 1:
        raise MisconfigurationException(
            f"RelevanceWriter writes one data set, got {count} loaders. Pass one over a "
            "torch.utils.data.ConcatDataset, or predict each into a folder of its own."
        )
    loader = loader_of(trainer)
    dataset = getattr(loader, "dataset", None)
    if not isinstance(dataset, Sized):
        found = loader if dataset is None else dataset
        raise MisconfigurationException(
            "RelevanceWriter needs a torch DataLoader over a data set with a length and indices, "
            f"which identify the samples, got {type(found).__name__}."
        )
    return len(dataset)


def from_first_process(trainer: Trainer, find: Callable[[], T]) -> T:
    """Calls a function in the first process, and returns its result in all processes.

    If it fails, all processes raise an error, so that none waits for the first one.

    Args:
        trainer: The trainer.
        find: The function; only the first process calls it.

    Returns:
        The function's result in the first process.

    Raises:
        Exception: The function's error; in the other processes a MisconfigurationException with
            the same text.
    """
    found: Any = None
    failure: Exception | None = None
    if trainer.is_global_zero:
        try:
            found = find()
        except Exception as error:
            failure = error
    found, refusal = trainer.strategy.broadcast((found, failure and str(failure)))
    if failure is not None:
        raise failure
    if refusal is not None:
        raise MisconfigurationException(refusal)
    value: T = found
    return value
