"""Logs the explanations of some validation samples during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from typing_extensions import override

from captum_transformer.visualization import MapOptions
from lightning_callbacks.explanations.checks import (
    MethodFactory,
    check_arguments,
    check_precision,
    check_trainer,
)
from lightning_callbacks.explanations.explained_model import ExplainedModel, ModelOf
from lightning_callbacks.explanations.faithfulness import Faithfulness
from lightning_callbacks.explanations.graphs import Graphs
from lightning_callbacks.isolation.run_context import Precision
from lightning_callbacks.loggers import charts
from lightning_callbacks.monitor.explained_runs import ExplainedRuns
from lightning_callbacks.monitor.history import Scale
from lightning_callbacks.monitor.log import Log
from lightning_callbacks.monitor.sample_explainer import SampleExplainer
from lightning_callbacks.monitor.stage_runs import StageRuns
from lightning_callbacks.monitor.texts import Texts
from lightning_callbacks.monitor.trainer_metrics import check_monitored
from lightning_callbacks.monitor.watch import Watch
from lightning_callbacks.samples.batch import BatchToInputs
from lightning_callbacks.samples.classes import ClassSlot
from lightning_callbacks.samples.layout import Layouts
from lightning_callbacks.samples.transfer import overrides
from lightning_callbacks.shared.failures import Failures

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class AttributionMonitor(ExplainedRuns):
    """Explains a fixed set of validation samples after each validation, and logs the pictures.

    For each sample, class slot and method, a picture with the input and the heatmap side by side
    is logged under the tag ``{prefix}_sample_{i}/{slot}/{method}``; with several inputs, one for
    each, under the input's name or number. Tags never change, so TensorBoard's step slider shows
    the history of a sample; the step is ``trainer.global_step``, or with several optimizers the
    step of Lightning's own metrics. For texts, a table of the exact values is logged as well. Two
    numbers are logged for each method:

    - ``{prefix}/convergence_delta/{method}``: the mean absolute convergence delta, for methods that
      have one;
    - ``{prefix}/rank_correlation/{method}``: the mean Spearman rank correlation of the maps (one
      value per pixel or token) with those of the last explained validation run. A sample only
      counts if its slot holds the same class as before, so for ``"predicted"`` the samples whose
      prediction has changed are left out.

    Training is bit for bit the same with and without the callback: gradients, the modes of the
    submodules, buffers and random number generators are preserved. The model is in evaluation mode
    while it is explained, and random methods draw the same numbers each time. A compiled module is
    explained uncompiled.

    With several processes, the first one explains its own samples on the unwrapped module, without
    communication. Under FSDP2, all processes gather the module for this, at the end of the run.
    FSDP1, ZeRO-3 and tensor parallelism are refused.

    The numbers are also in ``trainer.callback_metrics``, for checkpoints and early stopping. One
    monitor can be used by several trainers, and keeps their runs separate.

    Under `Trainer.test`, the first samples of the first test loader are explained in each test,
    with tags that begin with ``{prefix}_test``. In barebones mode nothing is explained.

    Args:
        methods: The methods by name. Each is created again for each validation run: any callable
            that takes the model, by default the Lightning module, and returns a Captum
            ``Attribution``, which may explain a part of it.
        classes: What is explained for each sample: ``"label"``, ``"predicted"`` (the class that is
            currently predicted) or class ids. Each is a slot in the log. For a sample with several
            labels (multi-hot ``(B, C)``), it is the first label with the largest value; a
            sample without a positive label has no picture in that slot.
        num_samples: The number of samples to explain: the first ones of the first validation
            loader, stored at the first validation run and kept on the CPU.
        samples: A batch to explain instead, completely, in the validation loader's format. It is
            passed to the model like a validation batch, through the hooks that prepare batches.
        every_n_validations: Explain in the first validation run and then in every n-th. Runs are
            counted instead of epochs, and sanity checks don't count.
        model: The part of the module to explain: the dotted name of a submodule, such as
            ``"net"``, or a function that returns it. By default the module itself, with its own
            forward.
        forward: How scores are computed: a function of that model, the inputs and the further
            arguments, such as ``lambda model, x: model(x)["scores"]``. By default the model is
            called.
        prefix: The beginning of all tags. Two monitors in one trainer need two prefixes.
        class_names: The names of the classes, for the captions.
        layout: The order of channels, rows, columns and frames in an input's samples, by letters:
            ``"HWC"`` for channels last, ``"TCHW"`` for a video, ``"HW"`` for a spectrogram,
            ``"CHW"`` for an image with other than 1 or 3 channels, whose mean is shown. For
            several inputs, by name: ``{"input_0": "TCHW"}``.
        heatmap: How attributions of images are drawn, e.g. ``{"smooth": True}``; see
            `captum_transformer.visualization.MapOptions`. ``sign`` and ``scale`` also apply to
            texts.
        tokenizer: A tokenizer of Transformers. With it, texts are shown as words, and special
            tokens don't set the colour scale: ``[CLS]`` may have so much relevance that all
            words would look colourless. Without a tokenizer, ids are shown.
        to_tokens: Converts the ids ``(N,)`` of a text to N strings, which are shown instead of
            words, such as a tokenizer's ``convert_ids_to_tokens``.
        off_scale_ids: The ids of tokens that don't set the colour scale of a text, ``()`` for
            none; by default the tokenizer's special tokens.
        batch_to_inputs: Reads ``(inputs, labels)`` or ``(inputs, labels, further)`` from a batch;
            inputs and further arguments by position, or by name in a mapping. By default a batch is
            a tensor, ``(inputs, labels)`` or a mapping with usual names, which is passed by name as
            in ``module(**batch)``, see `lightning_callbacks.samples.batch.read_batch`.
        probabilities: Converts the module's outputs to the probabilities in the captions. By
            default a softmax, and a sigmoid for multi-hot labels and for a model with a single
            output.
        internal_batch_size: How many samples are explained at a time, if all together don't fit
            into memory.
        precision: ``"trainer"`` explains in the precision of the validation, ``"float32"`` in
            single precision if that is half precision.
        share_samples: With several processes, each explains its share of the samples. The others
            write their results to files under the trainer's ``default_root_dir``, which all nodes
            must be able to read, and the first process logs them in its next validation run or at
            the end.
        faithfulness: Also log deletion and insertion areas, ``{prefix}/deletion_auc/{method}`` and
            ``{prefix}/insertion_auc/{method}``. None: don't, as this may cost more than explaining.
        layers: Names of submodules, such as a Transformer's blocks. For each method, a histogram
            of the relevance of their inputs is logged under ``{prefix}/layers/{name}/{method}``,
            at the cost of one more explanation, or of one for each layer with Captum's own
            methods; see `lightning_callbacks.explanations.layer_relevance`.
        account: Also log where the relevance goes, as shares under
            ``{prefix}/account/{taker}/{method}``: to the inputs, to biases, to position embeddings.
            For methods with an `account`, at the cost of an explanation.
        scale: The meaning of the strongest colour of a picture: ``"share"``, ``"first"``,
            ``"running"`` or ``"own"``, see `lightning_callbacks.monitor.history.Scale`.
        show_history: Show the maps of the first and of the last run next to each map.
        captured: Whether explanations are repeated as graphs from the second one on.
            Results are the same to the last bit. This pays off for small
            models and on fast devices, if dozens of runs are explained.
        on_error: What happens if a method or a logger fails: ``"warn"`` once and continue training,
            or ``"raise"``.
        seed: The seed of the random number generators each time a method runs.

    Raises:
        MisconfigurationException: If an argument is invalid; at the trainer's setup if it has
            no logger, or a strategy that splits parameters, or if the module has no forward and
            neither `model` nor `forward` is given, or if it lacks one of `layers`; before the first
            step if `samples` can't be read.

    Example:
        >>> from captum.attr import IntegratedGradients, Saliency
        >>> monitor = AttributionMonitor(
        ...     methods={"saliency": Saliency, "integrated": IntegratedGradients},
        ...     classes=("label", 3),
        ...     num_samples=4,
        ... )
        >>> monitor.state_dict()
        {'validation_runs': 0, 'samples': {}, 'scales': {}}
    """

    def __init__(
        self,
        methods: Mapping[str, MethodFactory],
        classes: Sequence[ClassSlot] = ("label", "predicted"),
        num_samples: int = 8,
        samples: Any = None,
        every_n_validations: int = 1,
        *,
        model: ModelOf | None = None,
        forward: Callable[..., Any] | None = None,
        prefix: str = "attribution",
        class_names: Sequence[str] | None = None,
        layout: str | Mapping[str, str] | None = None,
        heatmap: MapOptions | None = None,
        tokenizer: Any = None,
        to_tokens: Callable[[Tensor], Sequence[str]] | None = None,
        off_scale_ids: Sequence[int] | Set[int] | None = None,
        batch_to_inputs: BatchToInputs | None = None,
        probabilities: Callable[[Tensor], Tensor] | None = None,
        internal_batch_size: int | None = None,
        precision: Precision = "trainer",
        share_samples: bool = False,
        faithfulness: Faithfulness | None = None,
        layers: Sequence[str] = (),
        account: bool = False,
        scale: Scale = "share",
        show_history: bool = False,
        captured: bool = False,
        on_error: Literal["warn", "raise"] = "warn",
        seed: int = 0,
    ) -> None:
        check_arguments(
            methods,
            classes,
            heatmap,
            num_samples=num_samples,
            every_n_validations=every_n_validations,
            internal_batch_size=internal_batch_size,
        )
        check_precision(precision)
        self.every_n_validations = every_n_validations
        self.num_samples = num_samples
        self.samples = samples
        self.prefix = prefix
        self.batch_to_inputs = batch_to_inputs
        self.precision: Precision = precision
        self.share_samples = share_samples
        self.seed = seed
        self._failures = Failures(on_error, type(self).__name__)
        self.methods = dict(methods)
        self._explainer = SampleExplainer(
            self.methods,
            tuple(classes),
            self._failures,
            class_names=class_names,
            heatmap=heatmap,
            texts=Texts(tokenizer, to_tokens, off_scale_ids),
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
        self._explained = ExplainedModel(model, forward)
        super().__init__(self._new_watch)

    def _new_watch(self) -> Watch:
        validation = StageRuns("validate", self.prefix, self.every_n_validations)
        return Watch(validation, StageRuns("test", f"{self.prefix}_test"))

    @property
    def state_key(self) -> str:
        """The key of this monitor's state in a checkpoint, different for each prefix."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint: the number of runs, sample identities and scales."""
        watch = self._watches.current
        if watch.log is not None:
            watch.log.collect()
        runs = watch.validation
        return {"validation_runs": runs.runs, **runs.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        runs = self._watches.current.validation
        runs.runs = state_dict["validation_runs"]
        runs.restore(state_dict)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in ("fit", "validate", "test"):
            return
        watch = self._watches.enter(trainer)
        if trainer.barebones:
            self._failures.warn_once(
                "barebones", f"{self._failures.owner} explains nothing in barebones mode."
            )
            return
        check_trainer(trainer)
        if self.share_samples:
            check_monitored(trainer, self.prefix)
        if not overrides(pl_module, "configure_model"):
            self._check(pl_module)
        layout = charts(self.prefix, self._explainer.kinds(), list(self.methods))
        watch.log = Log(trainer, layout, self._failures, watch.take, share=self.share_samples)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watches.of(trainer) is not None:
            # Checked again: `configure_model`, which may split parameters, runs after the setup.
            self._check(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Errors are raised before training takes time; the module is on its device already.
        if self.samples is not None and (watch := self._watches.of(trainer)) is not None:
            self._choose_samples(trainer, pl_module, watch, watch.validation)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if (watch := self._watches.of(trainer)) is not None and watch.log is not None:
            watch.log.finish()
            self._watches.leave(watch)

    @override
    def on_exception(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        exception: BaseException,
    ) -> None:
        if (watch := self._watches.of(trainer)) is not None and watch.log is not None:
            watch.log.abandon()
            self._watches.leave(watch)
