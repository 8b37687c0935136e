"""Finds the modules that a user has chosen: by name, as a module, or as one of several calls."""

import difflib
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from captum_transformer.calling.isolation import modules_of
from captum_transformer.calling.uncompiled import written_name
from captum_transformer.errors import InvalidLayerError

# A dotted name or the module; where it runs several times, with the number of the call.
Layer = str | nn.Module | tuple[str | nn.Module, int]


class ChosenLayer(NamedTuple):
    """A module whose inputs or outputs are explained.

    Attributes:
        name: its dotted name, for messages.
        module: the module.
        call: the number of its call in a forward pass; None if it must run only once.
    """

    name: str
    module: nn.Module
    call: int | None


def chosen_layers(forward_func: Callable[..., Any], layers: Iterable[Layer]) -> list[ChosenLayer]:
    """Returns the modules that the given layers refer to.

    Raises:
        InvalidLayerError: if a name is not the name of one module, or a layer has another form.
    """
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise InvalidLayerError(
            f"`layers` must be a list, also for a single layer, got {layers!r}."
        )
    modules = modules_of(forward_func)
    by_name: dict[str, list[nn.Module]] = {}
    for name, module in modules:
        by_name.setdefault(name, []).append(module)
    names = {id(module): written_name(name) for name, module in modules}
    return [_chosen(layer, by_name, names) for layer in layers]


def _chosen(
    layer: Layer, by_name: dict[str, list[nn.Module]], names: dict[int, str]
) -> ChosenLayer:
    given, call = layer if isinstance(layer, tuple) and len(layer) == 2 else (layer, None)
    if call is not None:
        try:
            call = operator.index(call)
        except TypeError:
            raise InvalidLayerError(f"The number of a call must be an int, got {call!r}.") from None
    if isinstance(given, nn.Module):
        return ChosenLayer(names.get(id(given)) or type(given).__name__, given, call)
    if not isinstance(given, str):
        raise InvalidLayerError(
            "A layer is a module, its dotted name as in `model.named_modules()`, or a tuple of one "
            f"of these and the number of a call, got {layer!r}."
        )
    found = [given] if given in by_name else _named(given, by_name)
    if len(found) == 1 and len(by_name[found[0]]) == 1:
        return ChosenLayer(given, by_name[found[0]][0], call)
    known = dict.fromkeys(map(written_name, by_name))
    close = found or difflib.get_close_matches(written_name(given), known, n=3, cutoff=0.5)
    named = ", ".join(map(repr, close)) or "none with a name like it"
    if found:
        count = sum(len(by_name[name]) for name in found)
        raise InvalidLayerError(
            f"{given!r} may be any of {count} modules ({named}). Give the whole name, or the "
            "module itself."
        )
    raise InvalidLayerError(f"There is no module {given!r} in the model. There is: {named}.")


def _named(given: str, by_name: Mapping[str, object]) -> list[str]:
    """Returns the names that may be meant: within the outermost module, or before compiling."""
    found = [name for name in by_name if _below(name, by_name) == given]
    if found:
        return found
    written = written_name(given)
    outer: dict[str, str] = {}  # a compiled module stands before the one that it wraps
    for name in by_name:
        if written in {written_name(name), written_name(_below(name, by_name))}:
            outer.setdefault(written_name(name), name)
    return list(outer.values())


def _below(name: str, by_name: Mapping[str, object]) -> str:
    """Returns a module's name within the outermost module that a forward function uses."""
    parts = name.split(".")
    roots = (n for n in range(len(parts)) if ".".join(parts[:n]) in by_name)
    return ".".join(parts[next(roots, 0) :])
