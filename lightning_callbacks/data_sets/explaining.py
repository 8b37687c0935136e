"""A module whose prediction is an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from captum_transformer import TransformerMethod
from captum_transformer.calling.isolation import undisturbed
from lightning_callbacks.data_sets.describe import (
    describe,
    describe_method,
    describe_model,
    describe_versions,
)
from lightning_callbacks.data_sets.order import keeps_samples
from lightning_callbacks.explanations.checks import MethodFactory, check_classes
from lightning_callbacks.explanations.explanation import explain
from lightning_callbacks.explanations.graphs import Graphs
from lightning_callbacks.isolation.run_context import silenced
from lightning_callbacks.isolation.sharded import passes_undone, unsharded
from lightning_callbacks.samples.batch import BatchToInputs, Samples, read_batch
from lightning_callbacks.samples.classes import ClassSlot, read_output
from lightning_callbacks.samples.transfer import overridden_hooks, overrides
from lightning_callbacks.shared.flavors import Callback, MisconfigurationException


class ExplainedBatch(NamedTuple):
    """The explanations of samples of a batch, on the CPU.

    Attributes:
        rows: The indices of these samples in the batch.
        attributions: The attributions by input, ``(samples, ...)``, float32.
        target: The classes that are explained ``(samples,)``.
        prediction: The classes with the highest scores ``(samples,)``.
        score: The model's scores of the targets ``(samples,)``.
    """

    rows: Sequence[int]
    attributions: dict[str, Tensor]
    target: Tensor
    prediction: Tensor
    score: Tensor


class Explaining(nn.Module):
    """The base class of `ExplainerModule` for both packages of Lightning."""

    rows: Sequence[int] | None = None
    """Which samples of the next batch to explain, by default all: a `RelevanceWriter` sets it."""
    samples: int | None = None
    """How many samples the next batch must have, if that is known: a `RelevanceWriter` sets it."""

    def __init__(
        self,
        model: nn.Module,
        method: MethodFactory,
        target: ClassSlot = "predicted",
        *,
        tokens: bool = False,
        batch_to_inputs: BatchToInputs | None = None,
        captured: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_classes((target,))
        self.model = model
        # Set on the instance, and only the hooks that the model overrides: Lightning warns if both
        # a module and a data module override a hook.
        vars(self).update(overridden_hooks(model))
        if overrides(model, "configure_model"):
            vars(self)["configure_model"] = self._configure_model
        self._together = ExitStack()
        self._tried: BatchToInputs | None = None
        self.attribution_method = method(model)
        if tokens and not isinstance(self.attribution_method, TransformerMethod):
            raise MisconfigurationException(
                "tokens=True needs a method of captum_transformer, which knows the model's tokens, "
                f"got {type(self.attribution_method).__name__}. Leave it out to explain the inputs."
            )
        self.target = target
        self.tokens = tokens
        self.batch_to_inputs = batch_to_inputs
        self.seed = seed
        self._graphs = Graphs() if captured else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        return self.model(*args, **kwargs)

    def _configure_model(self) -> None:
        model: Any = self.model
        model._device_mesh = getattr(self, "_device_mesh", None)  # noqa: SLF001 - as a strategy
        model.configure_model()

    def on_predict_model_eval(self) -> None:
        """Gathers the parameters of a module that FSDP2 shards, for the whole prediction."""
        self.eval()
        # Processes may have different numbers of batches, so they can't synchronize at each batch.
        self._together.enter_context(unsharded(self))

    def on_predict_end(self) -> None:
        """Shards the module again as it was."""
        self._together.close()

    def configure_callbacks(self) -> list[Callback]:
        """Adds a callback that does the same as `on_predict_end` if the prediction fails."""
        return [_AtFailure(self)]

    def manifest(self) -> dict[str, Any]:
        """Returns what identifies the explanations.

        Returns:
            The method and its arguments, the target, the function that reads a batch, the model
            with its structure and a hash of its weights, and the versions, as values of JSON.
        """
        return {
            "method": describe_method(self.attribution_method, self.model),
            "target": self.target,
            "tokens": self.tokens,
            "batch_to_inputs": describe(self.batch_to_inputs, self.model),
            "seed": self.seed,
            "model": describe_model(self.model),
            "versions": describe_versions(self.model),
        }

    def predict_step(
        self,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> ExplainedBatch:
        """Explains a batch.

        Args:
            batch: The batch.
            batch_idx: Not used.
            dataloader_idx: Not used.

        Returns:
            The explanations.

        Raises:
            ValueError: If the batch can't be read, or the label is to be explained and is missing.
        """
        # Prediction runs in inference mode, whose tensors have no gradients: `select` copies them.
        # The trainer has set up its precision around the step.
        with (
            passes_undone(self.model),
            undisturbed(self.model, silenced(self.model, nullcontext()), seed=self.seed),
        ):
            samples = read_batch(batch, self.model.forward, self.batch_to_inputs)
            if self.samples is not None and len(samples) != self.samples:
                raise ValueError(
                    f"A batch has {len(samples)} samples, but {self.samples} ids: its collate_fn "
                    "has dropped or duplicated samples. Let the data set add its index to each "
                    "sample, and pass RelevanceWriter(..., ids=...) to say where a batch has the "
                    "indices."
                )
            self._require_samples_kept(batch, len(samples))
            rows = range(len(samples)) if self.rows is None else self.rows
            if not rows:
                empty = torch.zeros(0)
                return ExplainedBatch((), {}, empty, empty, empty)
            return self._explained(samples.select(rows), rows)

    def _require_samples_kept(self, batch: Any, count: int) -> None:
        read = self.batch_to_inputs
        if self._tried is read or self.samples is None or count < 2:
            return
        # With only two samples, swapping them can't be detected.
        self._tried = read if count > 2 else None
        if read is not None and not keeps_samples(read, batch, count):
            raise MisconfigurationException(
                "batch_to_inputs does not leave each sample where it was, or draws random numbers, "
                "so which explanation is of which sample can't be known. Sort samples in the "
                "model's forward, which returns its scores in the order of its inputs."
            )

    def _explained(self, samples: Samples, rows: Sequence[int]) -> ExplainedBatch:
        with torch.no_grad():
            output = samples.run(self.model)
            scores = read_output(output, samples.labels, probabilities=_as_they_are)
        targets = [
            self._target_of(row, class_id)
            for row, class_id in zip(rows, scores.classes(self.target), strict=True)
        ]
        pairs = list(enumerate(targets))
        explanations = explain(
            self.attribution_method,
            samples,
            pairs,
            single=scores.single,
            tokens=self.tokens,
            graphs=self._graphs,
        )
        names = samples.input_names()
        target = torch.tensor(targets)
        return ExplainedBatch(
            tuple(rows),
            {
                name: torch.stack([explanations[pair].attributions[number] for pair in pairs])
                for number, name in enumerate(names)
            },
            target,
            scores.probabilities.argmax(1),
            scores.probabilities.gather(1, target[:, None])[:, 0],
        )

    def _target_of(self, row: int, class_id: int | None) -> int:
        if class_id is None:
            raise ValueError(
                f"The sample in row {row} of the batch has no label that could be explained. Leave "
                'such samples out of the data set, or pass target="predicted".'
            )
        return class_id


class _AtFailure(Callback):
    """Ends a prediction that fails: modules have no hook for it."""

    def __init__(self, explaining: Explaining) -> None:
        self._explaining = explaining

    @override
    def on_exception(self, *_: Any) -> None:
        self._explaining.on_predict_end()


def _as_they_are(scores: Tensor) -> Tensor:
    return scores
