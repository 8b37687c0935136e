"""The state of earlier runs: maps to compare with, and colour scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from captum_transformer.visualization.maps import MapOptions, Sign, scale_map
from captum_transformer.visualization.panel import format_value
from lightning_callbacks.explanations.patches import Grid
from lightning_callbacks.samples.classes import ClassSlot
from lightning_callbacks.shared.flavors import MisconfigurationException

Scale: TypeAlias = Literal["share", "first", "running", "own"]
"""The meaning of the strongest colour of a map:

- ``"share"``: four times the map's mean absolute value, so that the colours of all steps show how
  relevance is distributed, whatever its total is;
- ``"first"``: the map's scale in the first run;
- ``"running"``: the largest scale so far;
- ``"own"``: each map has its own scale, so that weak and strong maps look alike.
"""

SCALES: tuple[Scale, ...] = ("share", "first", "running", "own")

_STRONGEST_SHARE = 4.0


def check_scale(scale: Scale) -> None:
    """Raises an error for an unknown kind of scale.

    Args:
        scale: The argument.

    Raises:
        MisconfigurationException: If the scale is unknown.
    """
    if scale not in SCALES:
        raise MisconfigurationException(
            f"scale must be one of {', '.join(map(repr, SCALES))}, got {scale!r}. A number for the "
            'strongest colour of all maps is heatmap={"scale": ...}.'
        )


class Colors(NamedTuple):
    """The meaning of a map's colours.

    Attributes:
        factor: The factor that its values are multiplied by before they are drawn.
        scale: The multiplied value with the strongest colour.
        sign: The part of the values that is shown.
        unit: The unit of the drawn values.
        note: A description of the scale.
    """

    factor: float
    scale: float
    sign: Sign
    unit: str
    note: str


class Shown(NamedTuple):
    """A map that has been drawn.

    Attributes:
        step: The step of its run.
        class_name: The class that it explains.
        values: The drawn values.
    """

    step: int
    class_name: str
    values: Tensor


@dataclass
class History:
    """The state of the runs of one stage.

    Attributes:
        last_maps: By method, slot and sample: the class that was explained, and its map.
        scales: By tag: a scale, the step that it is from, and whether negative values were seen.
            Stored in checkpoints.
        shown: By tag: the first map and the last.
        grids: By the shapes of a sample's inputs: the patches that each is cut into.
    """

    last_maps: dict[tuple[str, ClassSlot, int], tuple[int, Tensor]] = field(default_factory=dict)
    scales: dict[str, list[Any]] = field(default_factory=dict)
    shown: dict[str, tuple[Shown, Shown]] = field(default_factory=dict)
    grids: dict[tuple[torch.Size, ...], Sequence[Grid]] = field(default_factory=dict)

    def colors(
        self, tag: str, values: Tensor, kind: Scale, step: int, options: MapOptions
    ) -> Colors:
        """Finds the scale of a map.

        Args:
            tag: The tag under which the map is logged.
            values: The values of the map that set the scale.
            kind: The meaning of the strongest colour.
            step: The present step.
            options: How maps are drawn; a ``scale`` among them applies to all maps.

        Returns:
            The meaning of the map's colours.

        Example:
            >>> import torch
            >>> history = History()
            >>> history.colors("a", torch.tensor([1.0, 2.0]), "first", 8, {}).scale
            2.0
            >>> history.colors("a", torch.tensor([1.0, 4.0]), "first", 16, {})[1:]
            (2.0, 'positive', '', 'scale of the first run, step 8; here up to 4')
        """
        sign = options.get("sign", "auto")
        found = scale_map(values, sign=sign, quantile=options.get("quantile", 0.995))
        own = found.scale or 1.0
        fixed = options.get("scale")
        if fixed is not None or kind == "own":
            note = "" if fixed is not None else "scale of this step alone"
            return Colors(1.0, fixed or own, sign, "", note)
        known, since, signed = self.scales.get(tag, (own, step, found.signed))
        if kind == "running" and own > known:
            known, since = own, step
        # Once a map has had negative values, it keeps the signed colours.
        signed = signed or found.signed
        self.scales[tag] = [known, since, signed]
        if sign == "auto":
            sign = "signed" if signed else "positive"
        if kind == "share":
            mean = float(values.abs().mean()) if values.numel() else 0.0
            scale = min(_STRONGEST_SHARE, float(max(values.numel(), 1)))
            note = f"× the mean |relevance|, {format_value(mean)}"
            return Colors(1 / mean if mean else 1.0, scale, sign, "×", note)
        what = "scale of the first run" if kind == "first" else "largest scale so far"
        beyond = f"; here up to {format_value(own)}" if own > known else ""
        return Colors(1.0, known, sign, "", f"{what}, step {since}{beyond}")

    def beside(self, tag: str, now: Shown) -> dict[str, Tensor | None]:
        """Returns a map with the first one and the last one of its tag, and stores it.

        Args:
            tag: The tag under which the map is logged.
            now: The map.

        Returns:
            Maps by title, or None for a map that doesn't exist yet.
        """
        first, last = self.shown.get(tag, (None, None))
        self.shown[tag] = (first or now, now)
        columns = {"first": first, "last": last, "now": now}
        return {
            _title(name, each, now.class_name): _comparable(each, now)
            for name, each in columns.items()
        }


def _title(name: str, shown: Shown | None, class_name: str) -> str:
    if shown is None:
        return name
    if shown.class_name == class_name:
        return f"{name}: step {shown.step}"
    return f"{name}: {shown.step} → {shown.class_name}"


def _comparable(shown: Shown | None, now: Shown) -> Tensor | None:
    # A text that a loader crops at random may have another length in each run.
    return shown.values if shown is not None and shown.values.shape == now.values.shape else None
