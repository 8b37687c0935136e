"""Checks arguments of the callbacks before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from captum.attr import Attribution
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from captum_transformer.visualization import MapOptions, overlay
from lightning_callbacks.samples.classes import ClassSlot
from lightning_callbacks.shared.flavors import MisconfigurationException

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

MethodFactory: TypeAlias = Callable[[nn.Module], Attribution]
"""Creates an attribution method for a module, as the method's class itself does."""


def check_arguments(
    methods: Mapping[str, MethodFactory],
    classes: Sequence[ClassSlot],
    heatmap: MapOptions | None,
    **counts: int | None,
) -> None:
    """Raises an error for invalid arguments that the callbacks of all trainers have.

    Args:
        methods: The methods by name.
        classes: The class slots.
        heatmap: The options of pictures.
        counts: Numbers by the arguments' names, or None for arguments that aren't given.

    Raises:
        MisconfigurationException: If an argument is invalid.
    """
    check_methods(methods)
    check_classes(classes)
    check_heatmap(heatmap)
    for name, number in counts.items():
        if number is not None:
            check_at_least_one(name, number)


def check_trainer(trainer: Trainer) -> None:
    """Raises an error for trainers with which nothing could be explained or logged.

    Args:
        trainer: The trainer.

    Raises:
        MisconfigurationException: If it has no logger, or splits the module's parameters.
    """
    if not trainer.loggers:
        raise MisconfigurationException(
            "AttributionMonitor can't log, because the trainer has no logger. Pass one, "
            'e.g. Trainer(logger=TensorBoardLogger("runs")).'
        )
    check_strategy(trainer.strategy)


def check_strategy(strategy: Any) -> None:
    """Raises an error for strategies that split the parameters and can't gather them.

    Args:
        strategy: The trainer's strategy.

    Raises:
        MisconfigurationException: If it is FSDP1, ZeRO-3 or tensor parallelism.
    """
    if how := splits_parameters(strategy):
        raise MisconfigurationException(
            f"Nothing can be explained under {type(strategy).__name__}, which {how} among the "
            "processes: a forward pass in a single process would never finish. "
            'Use "ddp", which keeps the module whole, or FSDP2 (ModelParallelStrategy with '
            "fully_shard in configure_model), or explain a checkpoint after the training."
        )


def splits_parameters(strategy: Any) -> str | None:
    """Returns how a strategy splits the module's parameters without a way to gather them.

    Args:
        strategy: The trainer's strategy, of either Lightning, with its environment set up.

    Returns:
        A description, or None if each process can have the whole module, as with FSDP2.
    """
    names = {base.__name__ for base in type(strategy).__mro__}
    if "FSDPStrategy" in names:
        return "shards the parameters by FSDP1"
    if getattr(strategy, "zero_stage_3", False):
        return "shards the parameters by ZeRO-3"
    if "ModelParallelStrategy" in names and strategy.device_mesh["tensor_parallel"].size() > 1:
        return "splits the parameters by tensor parallelism"
    return None


def check_whole(module: nn.Module, *, by_fsdp2: bool = False) -> None:
    """Raises an error for a module whose parameters are split among processes.

    Args:
        module: The module.
        by_fsdp2: Whether they may be split by FSDP2, which can gather them.

    Raises:
        MisconfigurationException: If a process has only a part of the parameters, and can't gather
            the others.
    """
    if part := _split_part(module, by_fsdp2=by_fsdp2):
        raise MisconfigurationException(
            f"A module whose parameters are split among processes can't be explained while it "
            f"trains ({part}): a forward pass in the first process alone would never finish. "
            "Explain a checkpoint after the training."
        )


def _split_part(module: nn.Module, *, by_fsdp2: bool) -> str | None:
    allowed = {
        id(parameter)
        for part in module.modules()
        if by_fsdp2 and isinstance(part, FSDPModule)
        for parameter in part.parameters()
    }
    for name, parameter in module.named_parameters():
        if isinstance(parameter, DTensor) and id(parameter) not in allowed:
            other = "" if by_fsdp2 else "FSDP2 or "
            return f"{name!r} is a DTensor, as of {other}tensor parallelism"
        if hasattr(parameter, "ds_id"):
            return f"{name!r} is one of DeepSpeed's ZeRO-3"
    for name, part in module.named_modules():
        if any(base.__name__ == "FullyShardedDataParallel" for base in type(part).__mro__):
            return f"{name or 'it'!r} is wrapped by FSDP"
    return None


def check_layers(module: nn.Module, layers: Sequence[str]) -> None:
    """Raises an error for names that no submodule has.

    Args:
        module: The module.
        layers: The names.

    Raises:
        MisconfigurationException: If one is unknown.
    """
    known = [name for name, _ in module.named_modules() if name]
    if missing := [layer for layer in layers if layer not in known]:
        near = [n for layer in missing for n in get_close_matches(layer, known, n=2)]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise MisconfigurationException(
            f"layers names {missing}, but the {type(module).__name__} has no such submodules.{hint}"
            " The names are those of module.named_modules()."
        )


def check_heatmap(heatmap: MapOptions | None) -> None:
    """Raises an error for invalid options of pictures.

    Args:
        heatmap: The options.

    Raises:
        MisconfigurationException: If an option is unknown or invalid.
    """
    options = heatmap or {}
    known = sorted(MapOptions.__annotations__)
    if unknown := [name for name in options if name not in known]:
        raise MisconfigurationException(f"heatmap has no options {unknown}, it has {known}.")
    try:
        blank = torch.zeros(3, *(options.get("grid") or (2, 2)))
        overlay(blank, blank, **options)
    except (TypeError, ValueError) as error:
        raise MisconfigurationException(f"heatmap={heatmap!r} can't be drawn: {error}") from error


def check_precision(precision: str) -> None:
    """Raises an error for unknown precisions.

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
    """Raises an error for methods that can't be created, or whose names can't be parts of tags.

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
    """Raises an error for values that aren't a sequence of class slots.

    Args:
        classes: The slots.

    Raises:
        MisconfigurationException: If a slot is unknown or occurs twice, or there is none.
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
    """Raises an error for numbers below one.

    Args:
        name: The argument's name.
        number: Its value.

    Raises:
        MisconfigurationException: If the number is below one.
    """
    if number < 1:
        raise MisconfigurationException(f"{name} must be at least 1, got {number}.")
