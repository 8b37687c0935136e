"""What one validation run adds to the log."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from captum_transformer.visualization import MapOptions, log_attributions, log_token_attributions
from captum_transformer.visualization.tensorboard import ImageWriter
from lightning_callbacks.classes import ClassSlot, Predictions
from lightning_callbacks.explanation import Explanation
from lightning_callbacks.rank_correlation import rank_correlation
from lightning_callbacks.samples import Samples

LastMaps: TypeAlias = "dict[tuple[str, ClassSlot, int], tuple[int, Tensor]]"
"""By method, slot and sample: the class that was explained, and its map."""


@dataclass
class Report:
    """Draws explanations, compares them with those of the last run and sums up in numbers.

    Attributes:
        writers: Where the pictures go.
        prefix: The beginning of all tags.
        global_step: The step of all entries.
        last_maps: The maps of the last run, which this one replaces.
        heatmap: How attributions of images are drawn.
        to_tokens: Turns the ids of a text into token strings.
    """

    writers: Sequence[ImageWriter]
    prefix: str
    global_step: int
    last_maps: LastMaps
    heatmap: MapOptions
    to_tokens: Callable[[Tensor], Sequence[str]] | None = None
    _deltas: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _correlations: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self,
        method: str,
        explanations: Mapping[tuple[int, int], Explanation],
        classes: Mapping[ClassSlot, Sequence[int | None]],
        samples: Samples,
        predictions: Predictions,
        first: int,
    ) -> None:
        """Adds a method's explanations of some samples.

        Args:
            method: The method's name.
            explanations: By sample number and class id.
            classes: For each slot the samples' classes; None where a sample has none.
            samples: The samples, on the CPU.
            predictions: What the model predicts for them.
            first: The number in the log of the first of these samples.
        """
        self._deltas[method] += [e.delta for e in explanations.values() if e.delta is not None]
        chosen = {
            slot: [(row, class_id) for row, class_id in enumerate(ids) if class_id is not None]
            for slot, ids in classes.items()
        }
        # All numbers come before the first picture: one that can't be drawn costs no number.
        for slot, pairs in chosen.items():
            for row, class_id in pairs:
                key = (method, slot, first + row)
                self._compare(key, class_id, explanations[row, class_id])
        for slot, pairs in chosen.items():
            if not pairs:
                continue
            tag = f"class_{slot}" if isinstance(slot, int) else slot
            captions = [predictions.caption(row, class_id, method) for row, class_id in pairs]
            names = [f"sample_{first + row}" for row, _ in pairs]
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

    def metrics(self) -> dict[str, float]:
        """The numbers of the run.

        Returns:
            Means by tag; what has no value in this run is not in it.
        """
        means = {}
        for what, values_of in (
            ("convergence_delta", self._deltas),
            ("rank_correlation", self._correlations),
        ):
            for method, values in values_of.items():
                if values:
                    means[f"{self.prefix}/{what}/{method}"] = math.fsum(values) / len(values)
        return means

    def _compare(
        self, key: tuple[str, ClassSlot, int], class_id: int, explanation: Explanation
    ) -> None:
        values = explanation.flat_map()
        last_class, last_values = self.last_maps.get(key, (None, values))
        # Texts that a loader crops at random may have another length.
        if last_class == class_id and last_values.shape == values.shape:
            correlation = rank_correlation(values, last_values).item()
            if math.isfinite(correlation):
                self._correlations[key[0]].append(correlation)
        self.last_maps[key] = (class_id, values)

    def _draw(
        self,
        tag: str,
        inputs: Tensor,
        attributions: Sequence[Tensor],
        names: Sequence[str],
        captions: Sequence[str],
    ) -> None:
        for writer in self.writers:
            if attributions[0].dim() == 3:
                log_attributions(
                    writer,
                    self.prefix,
                    inputs,
                    {tag: torch.stack(list(attributions))},
                    global_step=self.global_step,
                    names=names,
                    captions=captions,
                    **self.heatmap,
                )
            else:
                log_token_attributions(
                    writer,
                    self.prefix,
                    [self._tokens(item) for item in inputs],
                    {tag: attributions},
                    global_step=self.global_step,
                    names=names,
                    captions=captions,
                    sign=self.heatmap.get("sign", "auto"),
                    scale=self.heatmap.get("scale"),
                )

    def _tokens(self, item: Tensor) -> Sequence[str]:
        if item.dim() != 1 or item.is_floating_point():
            # Embeddings and features have no ids: their positions stand for them.
            return [str(position) for position in range(len(item))]
        return [str(i) for i in item.tolist()] if self.to_tokens is None else self.to_tokens(item)
