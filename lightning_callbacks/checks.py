"""What an `AttributionMonitor` refuses before any time is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from captum.attr import Attribution
from torch import nn
from torch.distributed.tensor import DTensor

from captum_transformer.visualization import MapOptions, overlay
from lightning_callbacks.classes import ClassSlot
from lightning_callbacks.flavors import MisconfigurationException

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

MethodFactory: TypeAlias = Callable[[nn.Module], Attribution]
"""Makes an attribution method for a module; the method's class itself is one."""


def check_trainer(trainer: Trainer) -> None:
    """Refuses trainers under which nothing could be explained or logged.

    Args:
        trainer: The trainer.

    Raises:
        MisconfigurationException: If it has no logger, or splits the module's parameters.
    """
    if not trainer.loggers:
        raise MisconfigurationException(
            "AttributionMonitor has nowhere to log to, since the trainer has no logger. Pass one, "
            'e.g. Trainer(logger=TensorBoardLogger("runs")).'
        )
    check_strategy(trainer.strategy)


def check_strategy(strategy: Any) -> None:
    """Refuses strategies under which one process can't explain for itself.

    Args:
        strategy: The trainer's strategy.

    Raises:
        MisconfigurationException: If it splits the module's parameters.
    """
    if splits_parameters(strategy):
        raise MisconfigurationException(
            f"AttributionMonitor can't explain under {type(strategy).__name__}: it splits the "
            "parameters among the processes, and a forward pass of the first process alone would "
            "wait for the others for ever. Use a strategy that keeps the module whole, such as "
            '"ddp", or explain a checkpoint after the training.'
        )


def splits_parameters(strategy: Any) -> bool:
    """Whether a strategy leaves each process only a part of the module's parameters.

    Args:
        strategy: The trainer's strategy, of either Lightning.

    Returns:
        True for FSDP, tensor parallelism and ZeRO-3.
    """
    names = {base.__name__ for base in type(strategy).__mro__}
    by_name = names & {"FSDPStrategy", "ModelParallelStrategy"}
    return bool(by_name) or bool(getattr(strategy, "zero_stage_3", False))


def check_whole(module: nn.Module) -> None:
    """Refuses a module whose own `configure_model` has split its parameters.

    Args:
        module: The module.

    Raises:
        MisconfigurationException: If a parameter is a part of one.
    """
    split = [name for name, tensor in module.named_parameters() if isinstance(tensor, DTensor)]
    if split:
        raise MisconfigurationException(
            f"AttributionMonitor can't explain a module whose parameters are split among processes "
            f"({split[0]!r} is a DTensor): a forward pass of the first process alone would wait "
            "for the others for ever. Explain a checkpoint after the training."
        )


def check_heatmap(heatmap: MapOptions | None) -> None:
    """Refuses options of pictures that have no meaning.

    Args:
        heatmap: The options.

    Raises:
        MisconfigurationException: If one is unknown or has no meaning.
    """
    options = heatmap or {}
    known = sorted(MapOptions.__annotations__)
    if unknown := [name for name in options if name not in known]:
        raise MisconfigurationException(f"heatmap has no options {unknown}, it has {known}.")
    blank = torch.zeros(3, 2, 2)
    try:
        overlay(blank, blank, **options)
    except (TypeError, ValueError) as error:
        raise MisconfigurationException(f"heatmap={heatmap!r} can't be drawn: {error}") from error


def check_precision(precision: str) -> None:
    """Refuses unknown precisions.

    Args:
        precision: The precision.

    Raises:
        MisconfigurationException: If it is unknown.
    """
    if precision not in ("trainer", "float32"):
        raise MisconfigurationException(
            f"precision must be 'trainer' or 'float32', got {precision!r}."
        )


def check_methods(methods: Mapping[str, MethodFactory]) -> None:
    """Refuses methods that couldn't be made, or whose names are no tags.

    Args:
        methods: The methods by name.

    Raises:
        MisconfigurationException: If they are not callables by name.
    """
    if not methods or not hasattr(methods, "items"):
        raise MisconfigurationException(
            'methods must be a mapping of names to methods, such as {"saliency": Saliency}, got '
            f"{methods!r}."
        )
    for name, factory in methods.items():
        if not name or "/" in str(name):
            raise MisconfigurationException(
                "The name of a method becomes part of a tag: it must be a string without slashes, "
                f"got {name!r}."
            )
        if not callable(factory):
            raise MisconfigurationException(
                f"The method {name!r} must be callable with the module and return a Captum "
                f"Attribution, such as the class Saliency itself, got {factory!r}."
            )


def check_classes(classes: Sequence[ClassSlot]) -> None:
    """Refuses what is no sequence of class slots.

    Args:
        classes: The slots.

    Raises:
        MisconfigurationException: If a slot is unknown or comes twice, or there is none.
    """
    known = not isinstance(classes, str) and all(
        slot in ("label", "predicted") if isinstance(slot, str) else type(slot) is int and slot >= 0
        for slot in classes
    )
    if not known or not classes or len(set(classes)) < len(classes):
        raise MisconfigurationException(
            "classes must be a sequence of different slots, each 'label', 'predicted' or a class "
            f"id, got {classes!r}."
        )


def check_at_least_one(name: str, number: int) -> None:
    """Refuses numbers below one.

    Args:
        name: The argument's name.
        number: Its value.

    Raises:
        MisconfigurationException: If the number is below one.
    """
    if number < 1:
        raise MisconfigurationException(f"{name} must be at least 1, got {number}.")
