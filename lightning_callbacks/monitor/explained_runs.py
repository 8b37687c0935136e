"""Explains the samples in the runs of a trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from captum_transformer.calling.fingerprint import Fingerprint
from captum_transformer.calling.isolation import isolated
from lightning_callbacks.explanations.checks import check_layers, check_whole
from lightning_callbacks.explanations.explained_model import ExplainedModel
from lightning_callbacks.isolation.run_context import Precision, RunContext
from lightning_callbacks.isolation.sharded import is_sharded, unsharded
from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.monitor.sample_explainer import SampleExplainer
from lightning_callbacks.monitor.stage_runs import StageRuns
from lightning_callbacks.monitor.trainer_metrics import offer, step_of
from lightning_callbacks.monitor.watch import Watch
from lightning_callbacks.monitor.watched_runs import WatchedRuns
from lightning_callbacks.samples.batch import BatchToInputs
from lightning_callbacks.samples.fixed import FixedSamples
from lightning_callbacks.samples.given import given_samples
from lightning_callbacks.shared.failures import Failures

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class ExplainedRuns(WatchedRuns):
    """Explains the samples once in each run that is chosen."""

    num_samples: int
    samples: Any
    batch_to_inputs: BatchToInputs | None
    precision: Precision
    share_samples: bool
    seed: int
    _explained: ExplainedModel
    _explainer: SampleExplainer
    _failures: Failures

    def _check(self, module: LightningModule) -> None:
        check_whole(module, by_fsdp2=True)
        self._explained.of(module)
        check_layers(self._explained.part(module), self._explainer.layers)

    def _choose_samples(
        self, trainer: Trainer, module: LightningModule, watch: Watch, runs: StageRuns
    ) -> None:
        log = watch.log
        if runs.fixed is not None or log is None or not log.takes_part:
            return
        if self.samples is not None:
            forward = self._explained.of(module).forward
            runs.fixed = given_samples(
                self.samples, trainer, module, forward, log.share, self.batch_to_inputs
            )
        else:
            loaders = trainer.test_dataloaders if runs is watch.test else trainer.val_dataloaders
            share = log.share_of(loaders)
            runs.fixed = FixedSamples(self.num_samples, share, self.batch_to_inputs)

    @override
    def _try(
        self,
        trainer: Trainer,
        module: LightningModule,
        watch: Watch,
        batch: Any,
        dataloader_idx: int,
    ) -> None:
        # Errors in reading or predicting are reported before training takes time.
        takes_part = watch.log is not None and watch.log.takes_part
        if watch.tried or not takes_part or dataloader_idx or is_sharded(module):
            return
        watch.tried = True
        explained = self._explained.of(module)
        one = FixedSamples(1, batch_to_inputs=self.batch_to_inputs)
        with self._failures.tolerated("read the batch"), isolated(module):
            one.collect(batch, explained.forward)
        if one.complete:
            context = RunContext.of(trainer, module, explained, self.precision, self.seed)
            self._explainer.try_out(context, one.batches[0])

    @override
    def _begin(
        self, trainer: Trainer, module: LightningModule, watch: Watch, runs: StageRuns
    ) -> None:
        self._check(module)
        if watch.log is not None:
            watch.log.collect()
        self._choose_samples(trainer, module, watch, runs)
        runs.begin()

    @override
    def _see(
        self,
        trainer: Trainer,
        module: LightningModule,
        watch: Watch,
        runs: StageRuns,
        batch: Any,
        dataloader_idx: int,
    ) -> None:
        if not runs.pending and not runs.due:
            return
        sharded, is_last = is_sharded(module), runs.is_last_batch(trainer)
        complete = runs.collect(
            batch,
            module,
            self._failures,
            forward=self._explained.of(module).forward,
            from_first_loader=dataloader_idx == 0,
            is_last=is_last,
            at_end=sharded,
        )
        # All processes gather a sharded module, also those that explain nothing.
        if runs.meet(is_last=is_last) if sharded else complete:
            with unsharded(module):
                if complete and not self._failures.given_up:
                    self._explain(trainer, module, watch, runs)

    def _explain(
        self, trainer: Trainer, module: LightningModule, watch: Watch, runs: StageRuns
    ) -> None:
        if runs.fixed is None or watch.log is None:
            return
        if runs is watch.validation:
            runs.compare(self._failures)
        entries = LogEntries(runs.run, step_of(trainer))
        explained = self._explained.of(module)
        context = RunContext.of(trainer, module, explained, self.precision, self.seed)
        before = Fingerprint(module)
        self._explainer.explain(context, runs.fixed, runs.history, entries, runs.prefix)
        scales = runs.history.scales
        entries.scales = {tag: scales[tag] for tag in entries.images if tag in scales}
        entries.samples = runs.own_samples()
        watch.log.add(entries)
        if not self.share_samples:
            watch.means.update({tag: torch.tensor(m) for tag, m in entries.means().items()})
        if changed := before.differences():
            self._failures.give_up(changed)

    @override
    def _end(self, trainer: Trainer, watch: Watch, runs: StageRuns) -> None:
        offer(trainer, watch.means, runs.prefix)
