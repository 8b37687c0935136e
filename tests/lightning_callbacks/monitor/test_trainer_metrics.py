"""The monitor's numbers are metrics of the trainer, and its pictures are logged with them."""

import importlib

import pytest
from captum.attr import IntegratedGradients, Saliency

from lightning_callbacks import AttributionMonitor, Faithfulness
from tests.lightning_callbacks.monitor.test_where_it_runs import two_players
from tests.lightning_callbacks.processes import alone, needs_fork
from tests.lightning_callbacks.runs import METHODS, fit, read, steps

DELETION = "attribution/deletion_auc/saliency"


@pytest.mark.both
def test_numbers_are_among_the_metrics_of_callbacks(pl, trainer_options):
    monitor = AttributionMonitor(
        METHODS,
        num_samples=2,
        every_n_validations=2,
        faithfulness=Faithfulness(2),
        on_error="raise",
    )
    folder = trainer_options["default_root_dir"] / "checkpoints"
    best = pl.callbacks.ModelCheckpoint(folder, monitor=DELETION, save_top_k=1)
    stopping = pl.callbacks.EarlyStopping(
        "attribution/convergence_delta/integrated", stopping_threshold=1e6, strict=True
    )
    options = {**trainer_options, "enable_checkpointing": True}
    trainer = fit(pl, options, None, callbacks=[stopping, best, monitor], max_epochs=3)
    # Runs that aren't chosen have the numbers of the last one that was.
    assert trainer.current_epoch == 1, "the first run's number is below the threshold"
    (event,) = read(trainer).Scalars(DELETION)
    assert float(trainer.callback_metrics[DELETION]) == pytest.approx(event.value)
    assert float(best.best_model_score) == pytest.approx(event.value)


def train(flavor, options, folder, share):
    """To be run in a process of its own."""
    pl = importlib.import_module(flavor)
    monitor = AttributionMonitor(
        {"integrated": IntegratedGradients, "saliency": Saliency},
        num_samples=2,
        share_samples=share,
        on_error="raise",
    )
    name = "attribution/convergence_delta/integrated"
    stopping = pl.callbacks.EarlyStopping(name, stopping_threshold=1e6)

    class Counts(pl.Callback):
        def on_fit_end(self, trainer, pl_module):
            epochs = str(trainer.current_epoch)
            (folder / f"epochs_{trainer.global_rank}").write_text(epochs, encoding="utf-8")

    trainer = fit(
        pl,
        options,
        None,
        callbacks=[monitor, stopping, Counts()],
        devices=2,
        strategy="ddp_fork",
        max_epochs=3,
    )
    return float(trainer.callback_metrics[name])


@needs_fork
def test_all_processes_decide_alike(trainer_options):
    folder = trainer_options["default_root_dir"]
    assert alone(train, "pytorch_lightning", trainer_options, folder, False) >= 0
    assert [(folder / f"epochs_{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == [
        "1",
        "1",
    ]


@needs_fork
def test_numbers_that_come_too_late_are_refused(trainer_options):
    folder = trainer_options["default_root_dir"]
    with pytest.raises(Exception, match="Leave out share_samples"):
        alone(train, "pytorch_lightning", trainer_options, folder, True)


def test_pictures_and_metrics_of_several_optimizers(pl, trainer_options):
    monitor = AttributionMonitor(METHODS, num_samples=1, on_error="raise")
    trainer = fit(pl, trainer_options, monitor, two_players(pl), val_check_interval=4)
    events = read(trainer)
    pictures = steps(events.Images("attribution_sample_0/label/saliency"))
    assert pictures == steps(events.Scalars("val_loss")) == [3, 7, 11, 15]
