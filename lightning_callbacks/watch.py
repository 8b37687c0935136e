"""What a monitor keeps of the validation or of the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from lightning_callbacks.fixed_samples import FixedSamples
from lightning_callbacks.report import LastMaps

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

Stage: TypeAlias = Literal["validate", "test"]


@dataclass
class Watch:
    """The samples of one stage, and where its runs stand.

    Attributes:
        stage: ``"validate"`` or ``"test"``, which have loaders of their own.
        prefix: The beginning of the stage's tags.
        every_n: Explain in the first run and then in every n-th.
        fixed: The samples, from the setup on.
        last_maps: The maps of the last run.
        runs: How many runs there have been.
        due: Whether the present run is to be explained and hasn't been.

    Example:
        >>> watch = Watch("validate", "attribution", every_n=2)
        >>> [watch.begin() or watch.due for _ in range(4)]
        [True, False, True, False]
    """

    stage: Stage
    prefix: str
    every_n: int = 1
    fixed: FixedSamples | None = None
    last_maps: LastMaps = field(default_factory=dict)
    runs: int = 0
    due: bool = False

    def begin(self) -> None:
        """Counts a run."""
        self.due = self.runs % self.every_n == 0
        self.runs += 1
        if self.fixed is not None:
            self.fixed.restart()

    @property
    def run(self) -> str:
        """A name for the present run."""
        return f"{self.stage}/{self.runs}"

    def is_last_batch(self, trainer: Trainer) -> bool:
        """Whether no batch follows.

        A loader without length tells it only by its prefetching.

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
