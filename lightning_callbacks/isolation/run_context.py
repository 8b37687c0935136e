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
from lightning_callbacks.isolation.sharded import passes_undone
from lightning_callbacks.samples.batch import Samples

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

Precision: TypeAlias = Literal["trainer", "float32"]
"""The precision of explanations: that of the trainer's validation, or at least float32."""


@dataclass(frozen=True)
class RunContext:
    """Runs a model as in the trainer's validation, and restores its state afterwards.

    Attributes:
        module: The model that is explained.
        whole: The module that it is a part of, whose state is restored: the trainer's module,
            without the wrapper of a strategy.
        device: The device of the module.
        convert: Converts a tensor of the samples to the model's precision.
        forward_context: Creates the context of a forward pass, such as autocasting.
        seed: The seed of the random number generators.
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
        """Creates the context of a Lightning trainer.

        Args:
            trainer: The trainer.
            module: The Lightning module.
            explained: The model in it that is explained.
            precision: The precision of explanations.
            seed: The seed of the random number generators.

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
        """Moves samples to the model's device and converts them to its precision.

        Args:
            samples: The samples. The trainer only converts the batches that it loads itself, not
                samples that the user passes.

        Returns:
            The samples in the model's precision on its device.
        """
        return samples.map(self.convert).to(self.device)

    @contextmanager
    def undisturbed(self) -> Iterator[CompleteState]:
        """See `captum_transformer.calling.isolation.undisturbed`; restores FSDP2's state too."""
        with (
            passes_undone(self.whole),
            undisturbed(self.whole, self.forward_context(), seed=self.seed) as state,
        ):
            yield state


@contextmanager
def silenced(module: nn.Module, forward_context: AbstractContextManager[None]) -> Iterator[None]:
    """Drops values logged by a forward pass, which would be mistaken for the trainer's own.

    Args:
        module: The module, which may hold Lightning modules or be one.
        forward_context: The context of the forward pass.
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
