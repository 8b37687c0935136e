"""Shows during a training how the explanations of some validation samples evolve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from captum_transformer.visualization import MapOptions
from lightning_callbacks.checks import (
    MethodFactory,
    check_at_least_one,
    check_classes,
    check_methods,
    check_trainer,
)
from lightning_callbacks.classes import ClassSlot, read_output
from lightning_callbacks.explanation import explain
from lightning_callbacks.failures import Failures
from lightning_callbacks.flavors import Callback
from lightning_callbacks.isolation import isolated
from lightning_callbacks.loggers import PNGWriter, image_writers
from lightning_callbacks.report import Report
from lightning_callbacks.samples import BatchToInputs, Samples, read_batch

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class AttributionMonitor(Callback):
    """Explains a fixed set of validation samples again and again, and logs the pictures.

    For each sample, class slot and method one picture, input and heatmap side by side, is logged
    under the tag ``{prefix}/sample_{i}/{slot}/{method}``; with several inputs one for each, under
    the input's name or number. Tags never change, so TensorBoard's step
    slider goes through the history of a sample. Two numbers per method go with them:

    - ``{prefix}/convergence_delta/{method}``: the mean absolute convergence delta, for methods that
      have one;
    - ``{prefix}/rank_correlation/{method}``: the mean Spearman rank correlation of the maps (one
      value per pixel or token) with those of the last explained validation run. A sample counts
      only where its slot holds the same class as then, so under ``"predicted"`` the samples whose
      prediction has changed are left out.

    Training is bit for bit the same with and without the callback: gradients, the modes of the
    submodules, buffers and random number generators are kept. The model is in evaluation mode while
    it is explained, in the trainer's precision, and random methods draw the same numbers each time.

    With several processes the first explains its own samples on the unwrapped module, and nothing
    is communicated. Strategies that split the parameters among processes are refused.

    Args:
        methods: The methods by name. A method is made anew for each validation run, from the
            Lightning module: any callable that takes it and returns a Captum ``Attribution``.
        classes: What is explained of each sample: ``"label"``, ``"predicted"`` (the class that is
            predicted at the time) or class ids. Each is a slot in the log. The label of a sample
            with several (multi-hot ``(B, C)``) is the first of those with the largest value; a
            sample without a positive label has no picture in that slot.
        num_samples: How many samples are explained: the first ones of the first validation loader,
            taken at the first validation run and kept on the CPU.
        samples: Explain these instead, all of them: a batch such as the validation loader yields.
        every_n_validations: Explain in the first validation run and then in every n-th. Runs are
            counted, not epochs, and sanity checks don't count.
        prefix: The beginning of all tags. Two monitors in one trainer need two prefixes.
        class_names: The names of the classes, for the captions.
        heatmap: How attributions of images are drawn, e.g. ``{"smooth": True}``; see
            `captum_transformer.visualization.MapOptions`. ``sign`` and ``scale`` hold for texts,
            too.
        to_tokens: Turns the ids ``(N,)`` of a text into its N token strings, such as a tokenizer's
            ``convert_ids_to_tokens``. By default the ids themselves are shown.
        batch_to_inputs: Reads ``(inputs, labels)`` or ``(inputs, labels, further)`` from a batch;
            inputs and further arguments by position, or by name in a mapping. By default a batch is
            a tensor, ``(inputs, labels)`` or a mapping with usual names, which is passed by name as
            in ``module(**batch)``, see `lightning_callbacks.samples.read_batch`.
        probabilities: Turns the module's outputs into the probabilities of the captions. By default
            a softmax, and a sigmoid for multi-hot labels and for a model with a single output.
        on_error: What happens if a method fails: ``"warn"`` once and train on, or ``"raise"``.
        seed: Where the random number generators start each time that a method runs.

    Raises:
        MisconfigurationException: If an argument has no meaning; at the trainer's setup if it has
            no logger, or a strategy that splits parameters.

    Example:
        >>> from captum.attr import IntegratedGradients, Saliency
        >>> monitor = AttributionMonitor(
        ...     methods={"saliency": Saliency, "integrated": IntegratedGradients},
        ...     classes=("label", 3),
        ...     num_samples=4,
        ... )
        >>> monitor.state_dict()
        {'validation_runs': 0}
    """

    def __init__(
        self,
        methods: Mapping[str, MethodFactory],
        classes: Sequence[ClassSlot] = ("label", "predicted"),
        num_samples: int = 8,
        samples: Any = None,
        every_n_validations: int = 1,
        *,
        prefix: str = "attribution",
        class_names: Sequence[str] | None = None,
        heatmap: MapOptions | None = None,
        to_tokens: Callable[[Tensor], Sequence[str]] | None = None,
        batch_to_inputs: BatchToInputs | None = None,
        probabilities: Callable[[Tensor], Tensor] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_methods(methods)
        check_classes(classes)
        check_at_least_one("num_samples", num_samples)
        check_at_least_one("every_n_validations", every_n_validations)
        self.methods = dict(methods)
        self.classes = tuple(classes)
        self.num_samples = num_samples
        self.samples = samples
        self.every_n_validations = every_n_validations
        self.prefix = prefix
        self.class_names = class_names
        self.heatmap = heatmap or MapOptions()
        self.to_tokens = to_tokens
        self.batch_to_inputs = batch_to_inputs
        self.probabilities = probabilities
        self.seed = seed
        self._validation_runs = 0
        self._due = False
        # Batches are kept apart, since texts of several batches differ in their padding.
        self._batches: list[Samples] = []
        self._complete = False
        self._last_maps: dict[tuple[str, ClassSlot, int], tuple[int, Tensor]] = {}
        self._failures = Failures(on_error)

    @property
    def state_key(self) -> str:
        """Tells the states of several monitors in a checkpoint apart."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: how many validation runs there have been."""
        return {"validation_runs": self._validation_runs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting where the checkpoint was written.

        Args:
            state_dict: What `state_dict` returned.
        """
        self._validation_runs = state_dict["validation_runs"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuses what can't work before any time is spent.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: What the trainer is about to do.
        """
        if stage in ("fit", "validate"):
            check_trainer(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Counts the validation runs.

        Args:
            trainer: The trainer.
            pl_module: Not used.
        """
        if not trainer.sanity_checking:
            self._due = self._validation_runs % self.every_n_validations == 0
            self._validation_runs += 1
        if not self._complete:
            # What a run that was cut short has collected would come twice.
            self._batches.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        """Collects samples, and explains them as soon as all are there.

        Here and not at the end of the run, since weight averaging swaps its weights in for the run.

        Args:
            trainer: The trainer.
            pl_module: The module.
            outputs: Not used.
            batch: The batch.
            batch_idx: Not used.
            dataloader_idx: Samples are taken from loader 0.
        """
        if trainer.sanity_checking or not self._due or not trainer.is_global_zero:
            return
        if not self._complete:
            # A run whose batches can't be read is over, as if it had been explained.
            self._due = False
            with self._failures.tolerated("read the batch"):
                self._collect(pl_module, batch, dataloader_idx)
                self._due = True
        if self._due and (self._complete or dataloader_idx > 0 or _is_last_batch(trainer)):
            self._due, self._complete = False, True
            self._explain(trainer, pl_module)

    def _collect(self, module: LightningModule, batch: Any, dataloader_idx: int) -> None:
        given = self.samples is not None
        if dataloader_idx > 0 and not given:
            return
        # Under `Trainer.validate` a batch consists of inference tensors, which have no gradients.
        # Isolated, because `batch_to_inputs` may do anything.
        with isolated(module), torch.inference_mode(mode=False), torch.no_grad():
            batch = self.samples if given else batch
            samples = read_batch(batch, module.forward, self.batch_to_inputs)
            wanted = len(samples) if given else self.num_samples - sum(map(len, self._batches))
            self._batches.append(samples.select(range(min(wanted, len(samples)))).to("cpu"))
        self._complete = given or wanted <= len(samples)

    def _explain(self, trainer: Trainer, module: LightningModule) -> None:
        writers = image_writers(trainer.loggers, trainer.default_root_dir)
        if isinstance(writers[0], PNGWriter):
            self._failures.warn_once(
                "images",
                "No logger takes images, so AttributionMonitor writes PNG files to "
                f"{writers[0].folder}. Use a TensorBoardLogger to step through them.",
            )
        report = Report(
            writers,
            prefix=self.prefix,
            global_step=trainer.global_step,
            last_maps=self._last_maps,
            heatmap=self.heatmap,
            to_tokens=self.to_tokens,
        )
        first = 0
        for samples in self._batches:
            with self._failures.tolerated("predict the samples' classes"):
                self._explain_batch(trainer, module, samples, first, report)
            first += len(samples)
        if metrics := report.metrics():
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def _explain_batch(
        self,
        trainer: Trainer,
        module: LightningModule,
        samples: Samples,
        first: int,
        report: Report,
    ) -> None:
        # Given samples have not been through the trainer, which converts what it loads itself.
        moved = samples.map(trainer.precision_plugin.convert_input).to(module.device)
        with self._undisturbed(trainer, module), torch.no_grad():
            output = moved.run(module)
            predictions = read_output(
                output,
                moved.labels,
                class_names=self.class_names,
                probabilities=self.probabilities,
            )
        classes = {slot: predictions.classes(slot) for slot in self.classes}
        pairs = [
            (row, class_id)
            for ids in classes.values()
            for row, class_id in enumerate(ids)
            if class_id is not None
        ]
        for name, factory in self.methods.items():
            with self._failures.tolerated(f"explain with the method {name!r}"):
                with self._undisturbed(trainer, module):
                    method = factory(module)
                    explanations = explain(method, moved, pairs, single=predictions.single)
                report.add(name, explanations, classes, samples, predictions, first)

    @contextmanager
    def _undisturbed(self, trainer: Trainer, module: LightningModule) -> Iterator[None]:
        """Gradients in the trainer's precision, also within its inference mode."""
        with (
            isolated(module, seed=self.seed),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            trainer.precision_plugin.forward_context(),
        ):
            yield


def _is_last_batch(trainer: Trainer) -> bool:
    """Whether no batch follows, which a loader without length tells only by its prefetching."""
    fitting = trainer.state.fn == "fit"
    loop = trainer.fit_loop.epoch_loop.val_loop if fitting else trainer.validate_loop
    return loop.batch_progress.is_last_batch
