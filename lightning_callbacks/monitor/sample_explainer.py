"""Explains the fixed samples with all methods, independently of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from captum_transformer.visualization import MapOptions
from lightning_callbacks.explanations.checks import MethodFactory
from lightning_callbacks.explanations.explanation import Explanation, accounts, explain
from lightning_callbacks.explanations.faithfulness import Faithfulness
from lightning_callbacks.explanations.graphs import Graphs
from lightning_callbacks.explanations.layer_relevance import layer_relevance
from lightning_callbacks.explanations.patches import Grid, patch_grids
from lightning_callbacks.isolation.run_context import RunContext
from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.monitor.history import History, Scale, check_scale
from lightning_callbacks.monitor.report import Report
from lightning_callbacks.monitor.texts import Texts
from lightning_callbacks.samples.batch import Samples
from lightning_callbacks.samples.classes import ClassSlot, Predictions, read_output
from lightning_callbacks.samples.fixed import FixedSamples
from lightning_callbacks.samples.layout import Layouts
from lightning_callbacks.shared.failures import Failures


@dataclass(frozen=True)
class SampleExplainer:
    """What is explained, and how it is shown; the arguments of an `AttributionMonitor`.

    Attributes:
        methods: The methods by name.
        classes: The class slots.
        failures: What happens if a method fails.
        class_names: The names of the classes.
        heatmap: How attributions of images are drawn.
        texts: How texts are shown.
        probabilities: Converts outputs to probabilities.
        internal_batch_size: How many samples are explained at a time.
        faithfulness: How faithfulness is measured, or None.
        layers: The names of submodules; a histogram of each is logged for each method.
        account: Whether to log where the relevance goes.
        scale: The meaning of the strongest colour of a map.
        show_history: Whether the first and the last map are shown next to each map.
        layouts: The order of channels, rows and columns in the inputs.
        graphs: Captures calls that repeat, if given.
    """

    methods: Mapping[str, MethodFactory]
    classes: Sequence[ClassSlot]
    failures: Failures
    class_names: Sequence[str] | None = None
    heatmap: MapOptions | None = None
    texts: Texts = field(default_factory=Texts)
    probabilities: Callable[[Tensor], Tensor] | None = None
    internal_batch_size: int | None = None
    faithfulness: Faithfulness | None = None
    layers: Sequence[str] = ()
    account: bool = False
    scale: Scale = "share"
    show_history: bool = False
    layouts: Layouts = field(default_factory=Layouts)
    graphs: Graphs | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def kinds(self) -> list[str]:
        """Returns the kinds of numbers that are logged for each method."""
        areas = ["deletion_auc", "insertion_auc"] if self.faithfulness else []
        return ["convergence_delta", "rank_correlation", *areas]

    def explain(
        self,
        context: RunContext,
        fixed: FixedSamples,
        history: History,
        entries: LogEntries,
        prefix: str,
    ) -> None:
        """Explains all samples, and handles failures as `failures` is configured.

        Args:
            context: The model, and how it runs.
            fixed: The samples.
            history: The state of earlier runs, which is updated.
            entries: The entries to add pictures and numbers to.
            prefix: The beginning of all tags.
        """
        report = Report(
            entries,
            prefix,
            history,
            self.heatmap or MapOptions(),
            self.texts,
            self.scale,
            self.show_history,
            self.layouts,
        )
        for samples, numbers in zip(fixed.batches, fixed.numbers, strict=True):
            with self.failures.tolerated("predict the samples' classes"):
                self._explain_batch(context, samples, numbers, report)

    def try_out(self, context: RunContext, samples: Samples) -> None:
        """Predicts the samples' classes, to report failures early.

        Args:
            context: The model, and how it runs.
            samples: Some samples.
        """
        with self.failures.tolerated("predict the samples' classes"):
            with context.undisturbed(), torch.no_grad():
                predictions = self._predict(context, context.place(samples))
            for slot in self.classes:
                predictions.classes(slot)

    def _explain_batch(
        self, context: RunContext, samples: Samples, numbers: Sequence[int], report: Report
    ) -> None:
        moved = context.place(samples)
        with context.undisturbed(), torch.no_grad():
            predictions = self._predict(context, moved)
        classes = predictions.of_slots(self.classes)
        if "label" in classes and (unknown := predictions.unknown_labels()):
            self.failures.warn_once(
                "labels",
                f"The model has {predictions.probabilities.shape[1]} outputs, so there is none "
                f"for the labels {unknown}: samples with these have no picture in the slot "
                '"label".',
            )
        pairs = [
            (row, class_id)
            for ids in classes.values()
            for row, class_id in enumerate(ids)
            if class_id is not None
        ]
        maps, (shown, _) = self.layouts.arranged_maps, self.layouts.arranged(samples)
        grids = self._grids(context, moved, report.history)
        for name, factory in self.methods.items():
            with self.failures.tolerated(f"explain with the method {name!r}"):
                with context.undisturbed() as state:
                    explanations = explain(
                        factory(context.module),
                        moved,
                        pairs,
                        single=predictions.single,
                        internal_batch_size=self.internal_batch_size,
                        graphs=self.graphs,
                    )
                self._tell_of_changes(name, state.changed)
                explanations = {
                    pair: replace(each, attributions=maps(each.attributions, samples))
                    for pair, each in explanations.items()
                }
                if self.faithfulness is not None:
                    self._measure(self.faithfulness, name, context, moved, explanations, report)
                report.add(name, explanations, classes, shown, predictions, numbers, grids)
                self._explain_layers(name, context, moved, pairs, predictions, report)
                if self.account:
                    self._account(name, context, moved, pairs, predictions, report)

    def _grids(self, context: RunContext, samples: Samples, history: History) -> Sequence[Grid]:
        """Returns the patches that maps are summed by: as requested, or those of the model."""
        if self.heatmap is not None and "grid" in self.heatmap:
            return [self.heatmap["grid"]] * len(samples.inputs)
        shapes = tuple(tensor.shape[1:] for tensor in samples.inputs)
        if shapes not in history.grids:
            with context.undisturbed():
                history.grids[shapes] = patch_grids(context.module, samples)
        return [
            None
            if layout is not None and "T" in layout.letters
            else grid  # frames lie side by side
            for grid, layout in zip(history.grids[shapes], self.layouts.of(samples), strict=True)
        ]

    def _tell_of_changes(self, method: str, changed: Sequence[str]) -> None:
        if changed:
            self.failures.warn_once(
                f"changes by {method}",
                f"The method {method!r} has changed {' and '.join(changed)} of the model. The "
                "changes have been undone. Change a copy of the module instead, "
                "copy.deepcopy(module).",
            )

    def _account(
        self,
        method: str,
        context: RunContext,
        samples: Samples,
        pairs: Sequence[tuple[int, int]],
        predictions: Predictions,
        report: Report,
    ) -> None:
        with (
            self.failures.tolerated(f"keep an account of the method {method!r}"),
            context.undisturbed(),
        ):
            found = accounts(
                self.methods[method](context.module),
                samples,
                pairs,
                single=predictions.single,
                internal_batch_size=self.internal_batch_size,
            )
            for account in found:
                for taker, share in account.shares().items():
                    report.number(f"account/{taker.replace(' ', '_')}", method, [share])

    def _explain_layers(
        self,
        method: str,
        context: RunContext,
        samples: Samples,
        pairs: Sequence[tuple[int, int]],
        predictions: Predictions,
        report: Report,
    ) -> None:
        def explain_together(layers: Sequence[str]) -> None:
            with context.undisturbed():
                found = layer_relevance(
                    context.module,
                    layers,
                    self.methods[method],
                    samples,
                    pairs,
                    single=predictions.single,
                    internal_batch_size=self.internal_batch_size,
                )
            for layer, relevance in found.items():
                report.distribution(layer, method, relevance)

        if len(self.layers) > 1:
            with suppress(Exception):
                explain_together(self.layers)
                return
        # One by one, to report which of them fails.
        for layer in self.layers:
            what = f"explain the layer {layer!r} with the method {method!r}"
            with self.failures.tolerated(what):
                explain_together([layer])

    def _measure(
        self,
        faithfulness: Faithfulness,
        method: str,
        context: RunContext,
        samples: Samples,
        explanations: Mapping[tuple[int, int], Explanation],
        report: Report,
    ) -> None:
        pairs = list(explanations)
        size = self.internal_batch_size or len(samples)
        shown, restored = self.layouts.arranged(samples)
        with (
            self.failures.tolerated(f"measure the faithfulness of the method {method!r}"),
            context.undisturbed(),
            torch.no_grad(),
        ):
            for start in range(0, len(pairs), size):
                some = pairs[start : start + size]
                areas = faithfulness.areas(
                    shown,
                    some,
                    [explanations[pair].flat_map() for pair in some],
                    lambda changed: self._predict(context, restored(changed)).probabilities,
                )
                for kind, values in zip(("deletion_auc", "insertion_auc"), areas, strict=True):
                    report.number(kind, method, values.tolist())

    def _predict(self, context: RunContext, samples: Samples) -> Predictions:
        return read_output(
            samples.run(context.module),
            samples.labels,
            class_names=self.class_names,
            probabilities=self.probabilities,
        )
