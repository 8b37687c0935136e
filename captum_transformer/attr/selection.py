"""The scores that are explained, and the layers of attention that they depend on."""

import operator
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from torch import Tensor

from captum_transformer.errors import InvalidLayerError
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.history import History
from captum_transformer.trace.value import Value
from captum_transformer.trace.versions import Stream


class Selection(NamedTuple):
    """The scores that are explained, and the values whose relevance is wanted.

    Attributes:
        forward: the traced forward pass.
        selected: the score of each sample: ``(samples,)``.
        value: the value of the scores on the tape.
        wanted: the values whose relevance is wanted.
        checks: functions to call after all maps have been requested, if they are requested from
            the last attention call to the first; None if they are requested in another order.
    """

    forward: TracedForward
    selected: Tensor
    value: Value
    wanted: Sequence[Value]
    checks: list[Callable[[], None]] | None = None

    @property
    def history(self) -> History:
        """The part of the forward pass that the score depends on."""
        return self.forward.history(self.value)

    def from_layer(self, start_layer: int) -> list[AttentionCall]:
        """Returns the attention calls from a layer on; each tower counts its own layers.

        Raises:
            InvalidLayerError: if a tower has no such layer.
        """
        kept: list[AttentionCall] = []
        for layers, start in self.layers_of_towers(start_layer):
            kept += chain.from_iterable(layers[start:])
        return sorted(kept, key=lambda call: call.layer)

    def layers_of_towers(self, start_layer: int) -> list[tuple[list[list[AttentionCall]], int]]:
        """Returns the layers of each tower, and the index of the first one to use.

        Raises:
            InvalidLayerError: if a tower has no such layer.
        """
        found = []
        for tower in self._towers().values():
            layers = _layers(tower, from_last=_is_negative(start_layer, "start_layer"))
            found.append((layers, _place(start_layer, layers, "start_layer")))
        return found

    def layer(self, index: int) -> list[AttentionCall]:
        """Returns the attention calls of a layer, for each tower that the score is read from.

        Raises:
            InvalidLayerError: if a tower has no such layer.
        """
        towers = self._towers()
        read = {version.its_tower for version in self.history.streams[self.value]}
        chosen = [tower for stream, tower in towers.items() if stream in read]
        found: list[AttentionCall] = []
        for tower in chosen or towers.values():
            layers = _layers(tower, from_last=_is_negative(index, "layer"))
            found += layers[_place(index, layers, "layer")]
        return sorted(found, key=lambda call: call.layer)

    def _towers(self) -> dict[Stream, list[AttentionCall]]:
        """Returns the attention calls that the score depends on, by tower."""
        towers: dict[Stream, list[AttentionCall]] = {}
        for call, version in self.history.streams.calls.items():
            towers.setdefault(version.its_tower, []).append(call)
        return towers


def _layers(tower: Sequence[AttentionCall], *, from_last: bool) -> list[list[AttentionCall]]:
    """Returns the attention calls of a tower, layer by layer.

    Calls that don't depend on each other are one layer: branches side by side, and heads, samples
    or queries that a model computes one after the other.

    Args:
        tower: the calls, in their order.
        from_last: count from the last layer; this matters if branches differ in length.
    """
    steps: dict[AttentionCall, int] = {}
    for call in reversed(tower) if from_last else tower:
        further = (
            step
            for other, step in steps.items()
            if (_follows(other, call) if from_last else _follows(call, other))
        )
        steps[call] = max(further, default=-1) + 1
    layers: list[list[AttentionCall]] = [[] for _ in range(max(steps.values()) + 1)]
    for call, step in steps.items():
        layers[step].append(call)
    return layers[::-1] if from_last else layers


def _follows(call: AttentionCall, other: AttentionCall) -> bool:
    """Whether a call depends on another one, or its queries attended in the other one before."""
    attended = call.output.attention >> other.layer & 1
    return bool(attended) or call.output.descends_from(other.output)


def _is_negative(index: int, name: str) -> bool:
    try:
        return operator.index(index) < 0
    except TypeError:
        raise InvalidLayerError(f"{name} must be an int, got {index!r}.") from None


def _place(index: int, layers: Sequence[Sequence[AttentionCall]], name: str) -> int:
    if index not in range(-len(layers), len(layers)):
        raise InvalidLayerError(
            f"{name}={index!r} was asked for, but the forward pass has {len(layers)} layers of "
            f"attention (in the tower of {layers[-1][-1].module!r}): choose from {-len(layers)} to "
            f"{len(layers) - 1}."
        )
    return index % len(layers)
