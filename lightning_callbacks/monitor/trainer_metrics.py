"""The metrics of a Lightning trainer, and the monitor's among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_callbacks.shared.flavors import MisconfigurationException

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def step_of(trainer: Trainer) -> int:
    """The step under which pictures are logged.

    Args:
        trainer: The trainer.

    Returns:
        The global step. With several optimizers, each of whose steps that counts, it is the number
        under which Lightning logs metrics: that of the batches.
    """
    if len(trainer.optimizers) > 1:
        return trainer.fit_loop.epoch_loop._batches_that_stepped  # noqa: SLF001
    return trainer.global_step


def is_monitored(trainer: Trainer, prefix: str) -> bool:
    """Whether a callback, such as a checkpoint, watches one of the numbers under a prefix.

    Args:
        trainer: The trainer.
        prefix: The beginning of the numbers' tags.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    names = [str(getattr(callback, "monitor", "")) for callback in callbacks]
    return any(name.startswith(f"{prefix}/") for name in names)


def check_monitored(trainer: Trainer, prefix: str) -> None:
    """Refuses to share samples where a callback watches numbers that come too late for it.

    Args:
        trainer: The trainer.
        prefix: The beginning of the numbers' tags.

    Raises:
        MisconfigurationException: If one does.
    """
    if trainer.world_size > 1 and is_monitored(trainer, prefix):
        raise MisconfigurationException(
            f"A callback monitors {prefix}/..., but with share_samples=True the numbers of all "
            "processes come together only after the validation run. Leave out share_samples."
        )


def offer(trainer: Trainer, means: Mapping[str, Tensor], prefix: str) -> None:
    """Puts numbers among the metrics that callbacks watch.

    Args:
        trainer: The trainer. Where one of its callbacks does, and there are several processes, all
            of them get the numbers of the first one, as all have to decide alike.
        means: The numbers.
        prefix: The beginning of their tags.
    """
    if trainer.world_size > 1 and is_monitored(trainer, prefix):
        means = trainer.strategy.broadcast(dict(means))
    trainer.callback_metrics.update(means)
