"""The device, precision and contexts of a model during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import nn

from captum_transformer.calling.complete import CompleteState
from captum_transformer.calling.isolation import undisturbed
from lightning_callbacks.isolation.precision import in_single_precision, widened
from lightning_callbacks.samples.batch import Samples

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

Precision: TypeAlias = Literal["trainer", "float32"]
"""What is explained in: what the trainer validates in, or at least single precision."""


@dataclass(frozen=True)
class RunContext:
    """What a model needs to run as it is validated, and how to leave it as it was.

    Attributes:
        module: The model that is explained.
        whole: What it is part of and is left as it was: the trainer's module, without what a
            strategy wraps around it.
        device: Where it is.
        convert: Converts a tensor of the samples to the model's precision.
        forward_context: Makes what a forward pass happens in, such as autocasting.
        seed: Where the random number generators start.
    """

    module: nn.Module
    whole: nn.Module
    device: torch.device
    convert: Callable[[Any], Any]
    forward_context: Callable[[], AbstractContextManager[None]]
    seed: int = 0

    @classmethod
    def of(
        cls,
        trainer: Trainer,
        module: LightningModule,
        explained: nn.Module,
        precision: Precision,
        seed: int,
    ) -> RunContext:
        """Those of a Lightning trainer.

        Args:
            trainer: The trainer.
            module: The Lightning module.
            explained: The model in it that is explained.
            precision: What to explain in.
            seed: Where the random number generators start.

        Returns:
            The context.
        """
        plugin = trainer.precision_plugin
        single = precision == "float32"
        return cls(
            explained,
            module,
            module.device,
            widened if single else plugin.convert_input,
            lambda: silenced(
                module, in_single_precision(module) if single else plugin.forward_context()
            ),
            seed,
        )

    def place(self, samples: Samples) -> Samples:
        """Brings samples to where the model is.

        Args:
            samples: The samples; given ones have not been through the trainer, which converts what
                it loads itself.

        Returns:
            The samples in the model's precision on its device.
        """
        return samples.map(self.convert).to(self.device)

    @contextmanager
    def undisturbed(self) -> Iterator[CompleteState]:
        """See `captum_transformer.calling.isolation.undisturbed`."""
        with undisturbed(self.whole, self.forward_context(), seed=self.seed) as state:
            yield state


@contextmanager
def silenced(module: nn.Module, forward_context: AbstractContextManager[None]) -> Iterator[None]:
    """Drops values logged by a forward pass, which would be mistaken for the trainer's own.

    Args:
        module: The module, which may hold Lightning modules or be one.
        forward_context: What the forward pass happens in.
    """
    logging = [vars(part) for part in module.modules() if hasattr(part, "log_dict")]
    own = [attributes.get("log") for attributes in logging]
    for attributes in logging:
        attributes["log"] = _ignore
    try:
        with forward_context:
            yield
    finally:
        for attributes, log in zip(logging, own, strict=True):
            del attributes["log"]
            if log is not None:
                attributes["log"] = log


def _ignore(*_: Any, **__: Any) -> None:
    pass
