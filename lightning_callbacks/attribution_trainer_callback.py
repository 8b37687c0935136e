"""The features of `AttributionMonitor` for the ``Trainer`` of Transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from captum_transformer.calling.fingerprint import Fingerprint
from captum_transformer.calling.isolation import isolated
from captum_transformer.visualization import MapOptions
from lightning_callbacks.explanations.checks import (
    MethodFactory,
    check_arguments,
    check_layers,
    check_whole,
)
from lightning_callbacks.explanations.explained_model import ExplainedModel, ModelOf
from lightning_callbacks.explanations.faithfulness import Faithfulness
from lightning_callbacks.explanations.graphs import Graphs
from lightning_callbacks.isolation.run_context import RunContext
from lightning_callbacks.loggers import Publisher, charts
from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.loggers.summary_writers import AsLogger, summary_writer
from lightning_callbacks.monitor.history import History, Scale
from lightning_callbacks.monitor.sample_explainer import SampleExplainer
from lightning_callbacks.monitor.stage_runs import StageRuns
from lightning_callbacks.monitor.texts import Texts
from lightning_callbacks.monitor.trainer_state import load, store
from lightning_callbacks.samples.batch import BatchToInputs
from lightning_callbacks.samples.classes import ClassSlot
from lightning_callbacks.samples.data_set import collect_first
from lightning_callbacks.samples.fixed import FixedSamples
from lightning_callbacks.samples.layout import Layouts
from lightning_callbacks.shared.failures import Failures


class AttributionTrainerCallback(TrainerCallback):
    """Explains a fixed set of samples after each evaluation, and logs the pictures to TensorBoard.

    It logs the same pictures, texts and numbers as an `AttributionMonitor`, under the same tags,
    and also leaves training bit for bit the same. The samples are the first ones of the evaluation
    data set, in its order, passed through the loader's own collate function; the loader
    itself is not iterated. If there are several evaluation data sets, the first one is explained
    that the training evaluates.
    With several processes, only the first one explains. Checkpoints store the number of evaluations
    and which samples they were, and resumed training continues from there.

    Args:
        methods: The methods by name: any callables that take the model and return a Captum
            ``Attribution``. Captum's own don't support output objects:
            ``lambda model: Saliency(lambda ids: model(ids).logits)``.
        classes: What is explained for each sample: ``"label"``, ``"predicted"`` or class ids.
        num_samples: The number of samples to explain.
        samples: A batch to explain instead, completely, in the collate function's format.
        every_n_evaluations: Explain after the first evaluation and then after every n-th.
        model: The part of the model to explain, as in `AttributionMonitor`.
        forward: How scores are computed: a function of that model and its inputs by name, such as
            ``lambda model, **batch: model(**batch).logits[:, 0]``.
        prefix: The beginning of all tags. Two callbacks in one trainer need two prefixes.
        class_names: The names of the classes, for the captions.
        layout: The order of channels, rows, columns and frames, as in `AttributionMonitor`.
        heatmap: How attributions of images are drawn.
        to_tokens: Converts the ids ``(N,)`` of a text to N strings; by default words are shown,
            found with the trainer's tokenizer.
        off_scale_ids: Ids that don't set the colour scale of a text, by default special tokens.
        batch_to_inputs: Reads a batch; by default it is passed by name, without its labels.
        probabilities: Converts the model's outputs to the probabilities in the captions.
        internal_batch_size: How many samples are explained at a time.
        faithfulness: How faithfulness is measured, or None.
        layers: The names of submodules; a histogram of each is logged for each method.
        account: Also log where the relevance goes, as in `AttributionMonitor`.
        scale: The meaning of the strongest colour of a picture, as in `AttributionMonitor`.
        show_history: Show the maps of the first and of the last run next to each map.
        captured: Whether explanations are repeated as graphs, as in `AttributionMonitor`.
        writer: Where to log: a ``SummaryWriter``, or the trainer's ``TensorBoardCallback``, so that
            everything is in one run. By default a ``SummaryWriter`` in ``args.logging_dir``
            or, in versions without it, in ``TENSORBOARD_LOGGING_DIR``, or else in
            ``<output_dir>/runs/<prefix>``.
        on_error: What happens if a method fails: ``"warn"`` once and continue training, or
            ``"raise"``.
        seed: The seed of the random number generators each time a method runs.

    Raises:
        MisconfigurationException: If an argument is invalid; when training begins if parameters
            are split among processes, the model lacks one of `layers`, or another callback of the
            trainer has the same prefix.

    Example:
        >>> from captum_transformer import AttnLRP
        >>> callback = AttributionTrainerCallback({"lrp": AttnLRP}, num_samples=4)
        >>> # transformers.Trainer(model, args, ..., callbacks=[callback]).train()
    """

    def __init__(
        self,
        methods: Mapping[str, MethodFactory],
        classes: Sequence[ClassSlot] = ("label", "predicted"),
        num_samples: int = 8,
        samples: Any = None,
        every_n_evaluations: int = 1,
        *,
        model: ModelOf | None = None,
        forward: Callable[..., Any] | None = None,
        prefix: str = "attribution",
        class_names: Sequence[str] | None = None,
        layout: str | Mapping[str, str] | None = None,
        heatmap: MapOptions | None = None,
        to_tokens: Callable[[Tensor], Sequence[str]] | None = None,
        off_scale_ids: Sequence[int] | Set[int] | None = None,
        batch_to_inputs: BatchToInputs | None = None,
        probabilities: Callable[[Tensor], Tensor] | None = None,
        internal_batch_size: int | None = None,
        faithfulness: Faithfulness | None = None,
        layers: Sequence[str] = (),
        account: bool = False,
        scale: Scale = "share",
        show_history: bool = False,
        captured: bool = False,
        writer: Any = None,
        on_error: Literal["warn", "raise"] = "warn",
        seed: int = 0,
    ) -> None:
        check_arguments(
            methods,
            classes,
            heatmap,
            num_samples=num_samples,
            every_n_evaluations=every_n_evaluations,
            internal_batch_size=internal_batch_size,
        )
        self.num_samples = num_samples
        self.samples = samples
        self.prefix = prefix
        self.batch_to_inputs = batch_to_inputs
        self.writer = writer
        self.seed = seed
        self._explained = ExplainedModel(model, forward)
        self._failures = Failures(on_error, type(self).__name__)
        self._explainer = SampleExplainer(
            dict(methods),
            tuple(classes),
            self._failures,
            class_names=class_names,
            heatmap=heatmap,
            texts=Texts(None, to_tokens, off_scale_ids),
            probabilities=probabilities,
            internal_batch_size=internal_batch_size,
            faithfulness=faithfulness,
            layers=tuple(layers),
            account=account,
            scale=scale,
            show_history=show_history,
            layouts=Layouts(layout),
            graphs=Graphs() if captured else None,
        )
        self._runs = StageRuns("evaluate", prefix, every_n_evaluations)
        self._data: str | None = None
        self._earlier: dict[str, str] = {}
        self._laid_out = False

    @property
    def state_key(self) -> str:
        """The key of the state in `TrainerState.stateful_callbacks`.

        It isn't just the name of the class: with that, the trainer would create the callback from
        the checkpoint, which can't store the methods.
        """
        return f"{type(self).__name__}/{self.prefix}"

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: nn.Module | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Checks the configuration before training, and restores the state of a checkpoint.

        Args:
            args: Not used.
            state: The state of the training.
            control: Not used.
            model: The model, as prepared by the trainer.
            kwargs: Not used.
        """
        if model is not None:
            self._check(model)
        # What was evaluated before the training may be another data set, such as that of a test.
        self._data, self._runs.fixed, self._runs.runs = None, None, 0
        saved = load(state, self.state_key)
        if saved is not None:
            self._runs.runs = saved["evaluations"]
            self._runs.restore(saved)
        self._store(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: nn.Module | None = None,
        eval_dataloader: Any = None,
        processing_class: Any = None,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Explains the samples.

        Args:
            args: The trainer's arguments.
            state: The state of the training.
            control: Not used.
            model: The model, without what a strategy wraps around it.
            eval_dataloader: The loader that was evaluated.
            processing_class: The tokenizer, if the trainer has one.
            metrics: The evaluation's metrics, whose names tell data sets apart.
            kwargs: Not used.
        """
        data = next((name for name in metrics or () if name.endswith("_runtime")), "")
        self._data = data if self._data is None else self._data
        if model is None or data != self._data or not state.is_world_process_zero:
            return
        if self._failures.given_up:
            return
        runs = self._runs
        runs.begin()
        if runs.pending:
            # `on_train_begin` isn't called for an evaluation without training.
            self._check(model)
            self._explain(args, state, model, eval_dataloader, processing_class)
        self._store(state)

    def _store(self, state: TrainerState) -> None:
        runs = self._runs
        store(state, self.state_key, {"evaluations": runs.runs, **runs.state()}, self)

    def _check(self, model: nn.Module) -> None:
        check_whole(model)
        self._explained.of(model)
        check_layers(self._explained.part(model), self._explainer.layers)

    def _explain(
        self,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        loader: Any,
        tokenizer: Any,
    ) -> None:
        runs, explained = self._runs, self._explained.of(model)
        if runs.fixed is None:
            # Isolated, because data sets and collate functions may draw random numbers.
            with self._failures.tolerated("read the samples"), isolated(model):
                size = args.per_device_eval_batch_size
                runs.fixed = self._collected(explained.forward, loader, size)
        if runs.fixed is None:
            return
        self._compare_with_earlier(runs)
        texts = self._explainer.texts.with_tokenizer(tokenizer)
        self._explainer = explainer = replace(self._explainer, texts=texts)
        device = next(model.parameters()).device
        # The trainer's own precision is in the model: its forward pass autocasts by itself.
        context = RunContext(explained, model, device, _as_it_is, nullcontext, self.seed)
        entries = LogEntries(runs.run, state.global_step)
        before = Fingerprint(model)
        explainer.explain(context, runs.fixed, runs.history, entries, self.prefix)
        with self._failures.tolerated("log the explanations"):
            writer = summary_writer(self.writer, args, self.prefix)
            if self.writer is None:
                self.writer = writer
            self._publish(entries, writer)
        if changed := before.differences():
            self._failures.give_up(changed)

    def _compare_with_earlier(self, runs: StageRuns) -> None:
        runs.compare(self._failures)
        samples = runs.own_samples()
        if self._earlier not in ({}, samples):
            runs.history = History()
            self._failures.warn_once(
                "other samples",
                "Other samples are explained than before this training, so the pictures of a tag "
                "are not of one sample. Use a callback with a prefix of its own for each data set.",
            )
        self._earlier = samples

    def _collected(self, forward: Callable[..., Any], loader: Any, size: int) -> FixedSamples:
        if self.samples is not None:
            return FixedSamples.of(self.samples, forward, batch_to_inputs=self.batch_to_inputs)
        fixed = FixedSamples(self.num_samples, batch_to_inputs=self.batch_to_inputs)
        # Batches are as large as in the evaluation, since texts are padded to the longest of each.
        collect_first(fixed, loader, size, forward)
        return fixed

    def _publish(self, entries: LogEntries, writer: Any) -> None:
        publisher = Publisher([AsLogger(writer)], "", self._failures)
        if not self._laid_out:
            explainer = self._explainer
            publisher.layout(charts(self.prefix, explainer.kinds(), list(explainer.methods)))
            self._laid_out = True
        publisher.pictures(entries)
        publisher.numbers(entries)
        writer.flush()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
