"""Adds the monitor's numbers to the metrics of a Lightning trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_callbacks.shared.flavors import MisconfigurationException

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def step_of(trainer: Trainer) -> int:
    """Returns the step under which pictures are logged.

    Args:
        trainer: The trainer.

    Returns:
        The global step. With several optimizers, whose steps are all counted in it, the number of
        batches, which is the step of the metrics that Lightning logs.
    """
    if len(trainer.optimizers) > 1:
        return trainer.fit_loop.epoch_loop._batches_that_stepped  # noqa: SLF001
    return trainer.global_step


def is_monitored(trainer: Trainer, prefix: str) -> bool:
    """Returns whether a callback, such as a checkpoint, monitors a number under a prefix.

    Args:
        trainer: The trainer.
        prefix: The beginning of the numbers' tags.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    names = [str(getattr(callback, "monitor", "")) for callback in callbacks]
    return any(name.startswith(f"{prefix}/") for name in names)


def check_monitored(trainer: Trainer, prefix: str) -> None:
    """Raises an error if samples are shared and a callback monitors the numbers.

    Args:
        trainer: The trainer.
        prefix: The beginning of the numbers' tags.

    Raises:
        MisconfigurationException: If a callback does, since the numbers are known too late for it.
    """
    if trainer.world_size > 1 and is_monitored(trainer, prefix):
        raise MisconfigurationException(
            f"A callback monitors {prefix}/..., but with share_samples=True the numbers of all "
            "processes come together only after the validation run. Leave out share_samples."
        )


def offer(trainer: Trainer, means: Mapping[str, Tensor], prefix: str) -> None:
    """Adds numbers to the metrics that callbacks can monitor.

    Args:
        trainer: The trainer. If one of its callbacks monitors the numbers, and there are several
            processes, all of them get the numbers of the first one, so that all decide alike.
        means: The numbers.
        prefix: The beginning of the numbers' tags.
    """
    if trainer.world_size > 1 and is_monitored(trainer, prefix):
        means = trainer.strategy.broadcast(dict(means))
    trainer.callback_metrics.update(means)
