"""The state of the explained runs of one stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn

from captum_transformer.calling.isolation import isolated
from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.monitor.history import History
from lightning_callbacks.samples.fixed import FixedSamples
from lightning_callbacks.shared.failures import Failures

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

Stage: TypeAlias = Literal["validate", "test", "evaluate"]


@dataclass
class StageRuns:
    """The samples of one stage, and the state of its runs.

    Attributes:
        stage: ``"validate"`` or ``"test"`` of Lightning, which have loaders of their own, or
            ``"evaluate"`` of Transformers.
        prefix: The beginning of the stage's tags.
        every_n: Explain in the first run and then in every n-th.
        fixed: The samples, or None before they are chosen.
        history: The state of the maps of earlier runs.
        runs: The number of runs so far.
        pending: Whether the present run is to be explained and hasn't been explained yet.
        due: Whether the processes that shard a module still have to synchronize in the present run.
        known: The identities, by number, of samples from a checkpoint or from another process.
        restored: Whether the identities of a checkpoint still have to be compared.

    Example:
        >>> runs = StageRuns("validate", "attribution", every_n=2)
        >>> [runs.begin() or runs.pending for _ in range(4)]
        [True, False, True, False]
    """

    stage: Stage
    prefix: str
    every_n: int = 1
    fixed: FixedSamples | None = None
    history: History = field(default_factory=History)
    runs: int = 0
    pending: bool = False
    due: bool = False
    known: dict[str, str] = field(default_factory=dict)
    restored: bool = False

    def begin(self) -> None:
        """Begins a run, and determines whether it is explained."""
        self.pending = self.due = self.runs % self.every_n == 0
        self.runs += 1
        if self.fixed is not None:
            self.fixed.restart()

    @property
    def run(self) -> str:
        """The name of the present run."""
        return f"{self.stage}/{self.runs}"

    def own_samples(self) -> dict[str, str]:
        """Returns the identities, by number, of the samples that this process explains."""
        fixed = self.fixed
        return fixed.identity() if fixed is not None and fixed.complete else {}

    def take(self, entries: LogEntries) -> None:
        """Stores the identities and scales of a process's entries for the checkpoint.

        Args:
            entries: The process's entries of one of these runs.
        """
        self.known.update(entries.samples)
        self.history.scales.update(entries.scales)

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, without the number of runs."""
        samples = {**self.known, **self.own_samples()}
        return {"samples": samples, "scales": dict(self.history.scales)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the state of a checkpoint.

        Args:
            state: The state, as returned by `state`.
        """
        self.known, self.restored = dict(state["samples"]), True
        self.history.scales = dict(state.get("scales", {}))

    def collect(
        self,
        batch: Any,
        module: nn.Module,
        failures: Failures,
        *,
        forward: Callable[..., Any],
        from_first_loader: bool,
        is_last: bool,
        at_end: bool = False,
    ) -> bool:
        """Collects missing samples from a batch.

        Args:
            batch: The batch.
            module: The trainer's module.
            failures: What happens if the batch can't be read.
            forward: The function that will be given the inputs.
            from_first_loader: Whether the batch is from the first loader, whose samples are used.
            is_last: Whether no batch follows.
            at_end: Explain when no batch follows, instead of when all samples are collected.

        Returns:
            True once in a pending run, when no further samples will be collected.
        """
        fixed = self.fixed
        if fixed is None or not self.pending:
            return False
        if not fixed.complete and from_first_loader:
            # If a batch can't be read, the run is treated as if it had been explained.
            self.pending = False
            with failures.tolerated("read the batch"), isolated(module):
                fixed.collect(batch, forward)
                self.pending = True
        complete = is_last if at_end else fixed.complete or is_last
        if not self.pending or not (complete or not from_first_loader):
            return False
        self.pending, fixed.complete = False, True
        return True

    def meet(self, *, is_last: bool) -> bool:
        """Returns whether all processes synchronize now: once in a run, when the first loader ends.

        Args:
            is_last: Whether no batch of the first loader follows.
        """
        meeting = self.due and is_last
        self.due = self.due and not is_last
        return meeting

    def compare(self, failures: Failures) -> None:
        """Warns if the samples are not those of the checkpoint.

        Args:
            failures: Emits the warning.
        """
        restored, self.restored = self.restored, False
        own = self.own_samples().items()
        if restored and any(self.known.get(number, known) != known for number, known in own):
            failures.warn_once(
                "samples",
                "The samples that are explained are not those of the checkpoint, so the pictures "
                "of a tag are not of one sample. Pass samples= or a validation loader that doesn't "
                "shuffle.",
            )

    def is_last_batch(self, trainer: Trainer) -> bool:
        """Returns whether no batch follows.

        For a loader without a length, this is only known because Lightning prefetches batches.

        Args:
            trainer: The trainer.
        """
        if self.stage == "test":
            loop = trainer.test_loop
        elif trainer.state.fn == "fit":
            loop = trainer.fit_loop.epoch_loop.val_loop
        else:
            loop = trainer.validate_loop
        return loop.batch_progress.is_last_batch
