"""What one validation run adds to the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from captum_transformer.metrics import rank_correlation
from captum_transformer.visualization import MapOptions, log_attributions, log_token_attributions
from lightning_callbacks.classes import ClassSlot, Predictions
from lightning_callbacks.explanation import Explanation
from lightning_callbacks.log_entries import LogEntries
from lightning_callbacks.samples import Samples
from lightning_callbacks.texts import Texts

LastMaps: TypeAlias = "dict[tuple[str, ClassSlot, int], tuple[int, Tensor]]"
"""By method, slot and sample: the class that was explained, and its map."""


@dataclass
class Report:
    """Draws explanations, and compares them with those of the last run.

    Attributes:
        entries: Where pictures and numbers go.
        prefix: The beginning of all tags.
        last_maps: The maps of the last run, which this one replaces.
        heatmap: How attributions of images are drawn.
        texts: How texts are shown.
    """

    entries: LogEntries
    prefix: str
    last_maps: LastMaps
    heatmap: MapOptions
    texts: Texts = field(default_factory=Texts)

    def add(
        self,
        method: str,
        explanations: Mapping[tuple[int, int], Explanation],
        classes: Mapping[ClassSlot, Sequence[int | None]],
        samples: Samples,
        predictions: Predictions,
        numbers: Sequence[int],
    ) -> None:
        """Adds a method's explanations of some samples.

        Args:
            method: The method's name.
            explanations: By sample number and class id.
            classes: For each slot the samples' classes; None where a sample has none.
            samples: The samples, on the CPU.
            predictions: What the model predicts for them.
            numbers: The samples' numbers in the log.
        """
        deltas = [e.delta for e in explanations.values() if e.delta is not None]
        self.number("convergence_delta", method, deltas)
        chosen = {
            slot: [(row, class_id) for row, class_id in enumerate(ids) if class_id is not None]
            for slot, ids in classes.items()
        }
        # All numbers come before the first picture: one that can't be drawn costs no number.
        for slot, pairs in chosen.items():
            for row, class_id in pairs:
                key = (method, slot, numbers[row])
                self._compare(key, class_id, explanations[row, class_id])
        for slot, pairs in chosen.items():
            if not pairs:
                continue
            tag = f"class_{slot}" if isinstance(slot, int) else slot
            captions = [predictions.caption(row, class_id, method) for row, class_id in pairs]
            names = [f"sample_{numbers[row]}" for row, _ in pairs]
            parts = samples.names or [f"input_{i}" for i in range(len(samples.inputs))]
            for number, inputs in enumerate(samples.inputs):
                part = f"/{parts[number]}" if len(samples.inputs) > 1 else ""
                self._draw(
                    f"{tag}/{method}{part}",
                    inputs[[row for row, _ in pairs]],
                    [explanations[pair].attributions[number] for pair in pairs],
                    names,
                    captions,
                )

    def number(self, kind: str, method: str, values: Sequence[float]) -> None:
        """Adds values whose mean is logged.

        Args:
            kind: What they are.
            method: The method that they are about.
            values: One per explanation.
        """
        self.entries.numbers[f"{self.prefix}/{kind}/{method}"] += values

    def distribution(self, layer: str, method: str, values: Tensor) -> None:
        """Adds values that are logged as a histogram.

        Args:
            layer: The layer that they belong to.
            method: The method that has given them.
            values: The values, flat.
        """
        tag = f"{self.prefix}/layers/{layer}/{method}"
        histograms = self.entries.histograms
        histograms[tag] = torch.cat([histograms[tag], values]) if tag in histograms else values

    def _compare(
        self, key: tuple[str, ClassSlot, int], class_id: int, explanation: Explanation
    ) -> None:
        values = explanation.flat_map()
        last_class, last_values = self.last_maps.get(key, (None, values))
        # Texts that a loader crops at random may have another length.
        if last_class == class_id and last_values.shape == values.shape:
            correlation = rank_correlation(values[None], last_values[None]).item()
            if math.isfinite(correlation):
                self.number("rank_correlation", key[0], [correlation])
        self.last_maps[key] = (class_id, values)

    def _draw(
        self,
        tag: str,
        inputs: Tensor,
        attributions: Sequence[Tensor],
        names: Sequence[str],
        captions: Sequence[str],
    ) -> None:
        if attributions[0].dim() == 3:
            log_attributions(
                self.entries,
                self.prefix,
                inputs,
                {tag: torch.stack(list(attributions))},
                global_step=self.entries.step,
                names=names,
                captions=captions,
                **self.heatmap,
            )
        else:
            shown = [
                self.texts.shown(item, attribution)
                for item, attribution in zip(inputs, attributions, strict=True)
            ]
            log_token_attributions(
                self.entries,
                self.prefix,
                [text.labels for text in shown],
                {tag: [text.attribution for text in shown]},
                global_step=self.entries.step,
                names=names,
                captions=captions,
                table=True,
                sign=self.heatmap.get("sign", "auto"),
                scale=self.heatmap.get("scale"),
                off_scale=[text.off_scale for text in shown],
            )
