"""Moves a batch to the model as the trainer does: precision, hooks and device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""The hooks that are applied to a batch on its way to the model."""


def transferred(batch: Any, trainer: Trainer, module: LightningModule) -> Any:
    """Returns a batch of a loader as the trainer passes it to the steps of the module.

    The hooks are those of the data module if it overrides them, and those of the module otherwise.

    Args:
        batch: The batch, which hooks may modify.
        trainer: The trainer, with the module on its device.
        module: The trainer's module.

    Returns:
        The batch after all hooks, in the trainer's precision on its device.
    """
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)  # noqa: SLF001 - Lightning has no other name for the module's own or the data module's hook
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def overridden_hooks(model: nn.Module) -> dict[str, Any]:
    """Returns the hooks with which a Lightning module changes batches.

    Args:
        model: Any module.

    Returns:
        The overridden hooks by name; empty for a module without such hooks.

    Example:
        >>> class Normalised(nn.Module):
        ...     def on_after_batch_transfer(self, batch, dataloader_idx):
        ...         return (batch - 0.5) / 0.25
        >>> list(overridden_hooks(Normalised()))
        ['on_after_batch_transfer']
    """
    return {name: getattr(model, name) for name in HOOKS if overrides(model, name)}


def overrides(model: nn.Module, hook: str) -> bool:
    """Returns whether a module has its own implementation of a hook, not just Lightning's.

    Args:
        model: Any module.
        hook: The hook's name.
    """
    own = getattr(model, hook, None)
    return own is not None and getattr(own, "__module__", "") not in _OF_LIGHTNING


_OF_LIGHTNING = ("pytorch_lightning.core.hooks", "lightning.pytorch.core.hooks")
