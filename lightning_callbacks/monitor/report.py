"""Draws and compares the explanations of one validation run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_transformer.metrics import rank_correlation
from captum_transformer.visualization import (
    MapOptions,
    panel,
    to_map,
    token_strip,
    token_table,
)
from captum_transformer.visualization.canvas import Image
from captum_transformer.visualization.patches import BY_PATCH
from captum_transformer.visualization.tensorboard import FONT_SCALE
from captum_transformer.visualization.token_scale import as_mask
from captum_transformer.visualization.tokens import token_values
from lightning_callbacks.explanations.explanation import Explanation
from lightning_callbacks.explanations.patches import Grid
from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.monitor.history import Colors, History, Scale, Shown
from lightning_callbacks.monitor.item import Item
from lightning_callbacks.monitor.texts import Texts
from lightning_callbacks.samples.batch import Samples
from lightning_callbacks.samples.classes import ClassSlot, Facts, Predictions
from lightning_callbacks.samples.layout import Layouts


class Where(NamedTuple):
    """Identifies an explanation of a run.

    Attributes:
        sample: The sample's number in the log.
        slot: The name of the class slot.
        method: The method's name.
        input: The name of the input.
    """

    sample: int
    slot: str
    method: str
    input: str

    def tag(self, prefix: str, *, several: bool) -> str:
        """Returns the explanation's tag; TensorBoard has a group for each sample.

        Args:
            prefix: The beginning of all tags.
            several: Whether there are several inputs.
        """
        tag = f"{prefix}_sample_{self.sample}/{self.slot}/{self.method}"
        return f"{tag}/{self.input}" if several else tag

    def columns(self) -> dict[str, Any]:
        """Returns the attributes as cells of a table."""
        return self._asdict()


@dataclass
class Report:
    """Draws explanations, and compares them with those of earlier runs.

    Attributes:
        entries: The entries to add pictures and numbers to.
        prefix: The beginning of all tags.
        history: The state of earlier runs, which is updated.
        heatmap: How attributions of images are drawn.
        texts: How texts are shown.
        scale: The meaning of the strongest colour.
        show_history: Whether the first and the last map are shown next to each map.
        layouts: The order of channels, rows and columns in the inputs before they were arranged.
    """

    entries: LogEntries
    prefix: str
    history: History
    heatmap: MapOptions
    texts: Texts = field(default_factory=Texts)
    scale: Scale = "share"
    show_history: bool = False
    layouts: Layouts = field(default_factory=Layouts)

    def add(
        self,
        method: str,
        explanations: Mapping[tuple[int, int], Explanation],
        classes: Mapping[ClassSlot, Sequence[int | None]],
        samples: Samples,
        predictions: Predictions,
        numbers: Sequence[int],
        grids: Sequence[Grid],
    ) -> None:
        """Adds a method's explanations of some samples.

        Args:
            method: The method's name.
            explanations: By sample number and class id.
            classes: For each slot the samples' classes, or None for samples without one.
            samples: The samples, on the CPU.
            predictions: The model's predictions for them.
            numbers: The samples' numbers in the log.
            grids: For each input, the patches that maps are summed by.
        """
        deltas = [e.delta for e in explanations.values() if e.delta is not None]
        self.number("convergence_delta", method, deltas)
        chosen = {
            slot: [(row, class_id) for row, class_id in enumerate(ids) if class_id is not None]
            for slot, ids in classes.items()
        }
        # All numbers are added before the first picture, so they aren't lost if one can't be drawn.
        for slot, pairs in chosen.items():
            for row, class_id in pairs:
                key = (method, slot, numbers[row])
                self._compare(key, class_id, explanations[row, class_id])
        parts = samples.input_names()
        table = f"{self.prefix}/explanations"
        for slot, pairs in chosen.items():
            for row, class_id in pairs:
                facts = predictions.facts(row, class_id)
                attributions = explanations[row, class_id].attributions
                name_of_slot = f"class_{slot}" if isinstance(slot, int) else slot
                layouts = self.layouts.of(samples)
                for name, inputs, attribution, layout, grid in zip(
                    parts, samples.inputs, attributions, layouts, grids, strict=True
                ):
                    where = Where(numbers[row], name_of_slot, method, name)
                    tag = where.tag(self.prefix, several=len(parts) > 1)
                    item = Item(inputs[row], layout, grid)
                    self._draw(tag, item, attribution, facts, method)
                    shown = {**where.columns(), **facts.columns(), "tag": tag}
                    self.entries.tables.setdefault(table, []).append(shown)

    def number(self, kind: str, method: str, values: Sequence[float]) -> None:
        """Adds values whose mean is logged.

        Args:
            kind: The kind of number.
            method: The name of the method.
            values: One per explanation.
        """
        self.entries.numbers[f"{self.prefix}/{kind}/{method}"] += values

    def distribution(self, layer: str, method: str, values: Tensor) -> None:
        """Adds values that are logged as a histogram.

        Args:
            layer: The name of the layer.
            method: The name of the method.
            values: The values, flat.
        """
        tag = f"{self.prefix}/layers/{layer}/{method}"
        histograms = self.entries.histograms
        histograms[tag] = torch.cat([histograms[tag], values]) if tag in histograms else values

    def _compare(
        self, key: tuple[str, ClassSlot, int], class_id: int, explanation: Explanation
    ) -> None:
        values = explanation.flat_map()
        last_class, last_values = self.history.last_maps.get(key, (None, values))
        # A text that a loader crops at random may have another length in each run.
        if last_class == class_id and last_values.shape == values.shape:
            correlation = rank_correlation(values[None], last_values[None]).item()
            if math.isfinite(correlation):
                self.number("rank_correlation", key[0], [correlation])
        self.history.last_maps[key] = (class_id, values)

    def _draw(self, tag: str, item: Item, attribution: Tensor, facts: Facts, method: str) -> None:
        caption = facts.caption(method)
        draw = self._image if item.is_image() else self._text
        picture = draw(tag, item, attribution, caption, facts.explained)
        self.entries.add_picture(tag, picture, caption)

    def _image(
        self, tag: str, item: Item, attribution: Tensor, caption: str, class_name: str
    ) -> Image:
        image, grey = item.picture()
        channels = self.heatmap.get("channels", "sum")
        values = to_map(attribution, channels=channels, grid=item.grid).cpu()
        colors = self._colors(tag, values)
        options: MapOptions = {
            **self.heatmap,
            "scale": colors.scale,
            "sign": colors.sign,
            "grid": None,  # the values are summed already
        }
        summed = "" if item.grid is None else BY_PATCH
        return panel(
            image,
            self._beside(tag, values * colors.factor, class_name),
            caption,
            height=item.height(),
            font_scale=FONT_SCALE,
            note="; ".join(filter(None, (colors.note, summed, grey))),
            unit=colors.unit,
            **options,
        )

    def _text(
        self, tag: str, item: Item, attribution: Tensor, caption: str, class_name: str
    ) -> Image:
        text = self.texts.shown(item.values, attribution)
        values = token_values(text.labels, text.attribution).cpu()
        # If all tokens of a text are off the scale, it has the scale of a zero.
        setting = values[~as_mask(text.off_scale, len(values))]
        colors = self._colors(tag, setting if len(setting) else values[:1] * 0)
        self.entries.add_text(tag, token_table(text.labels, text.attribution))
        maps = self._beside(tag, values * colors.factor, class_name)
        return token_strip(
            text.labels,
            maps if isinstance(maps, Tensor) else {k: v for k, v in maps.items() if v is not None},
            caption,
            sign=colors.sign,
            scale=colors.scale,
            off_scale=text.off_scale,
            font_scale=FONT_SCALE,
            note=colors.note,
            unit=colors.unit,
        )

    def _colors(self, tag: str, values: Tensor) -> Colors:
        options = self.heatmap
        return self.history.colors(tag, values, self.scale, self.entries.step, options)

    def _beside(
        self, tag: str, values: Tensor, class_name: str
    ) -> Tensor | dict[str, Tensor | None]:
        if not self.show_history:
            return values
        return self.history.beside(tag, Shown(self.entries.step, class_name, values))
