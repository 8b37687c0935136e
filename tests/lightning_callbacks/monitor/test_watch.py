"""One monitor and several trainers, one after the other or one within the other."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_callbacks import AttributionMonitor
from tests.lightning_callbacks.models import Blobs, classifier, loaders
from tests.lightning_callbacks.runs import METHODS, decode, fit, read, steps

TAG = "attribution_sample_0/label/saliency"
CORRELATION = "attribution/rank_correlation/saliency"


def fold(seed):
    return loaders()[0], DataLoader(Blobs(6, seed), batch_size=3)


def pictures(trainer):
    return [decode(event) for event in read(trainer).Images(TAG)]


@pytest.mark.slow
def test_folds_of_a_cross_validation(pl, trainer_options):
    def run(monitor, seed):
        pl.seed_everything(1, verbose=False)
        return fit(pl, trainer_options, monitor, data=fold(seed))

    options = {"num_samples": 2, "every_n_validations": 2, "on_error": "raise"}
    shared = AttributionMonitor(METHODS, **options)
    for seed in (2, 3):
        one = run(shared, seed)
        alone = run(AttributionMonitor(METHODS, **options), seed)
        assert shared.state_dict()["validation_runs"] == 2
        for ours, expected in zip(pictures(one), pictures(alone), strict=True):
            assert (ours == expected).all(), "the pictures are of the fold's own samples"
        assert CORRELATION not in read(one).Tags()["scalars"], "there is no earlier run of a fold"


@pytest.mark.slow
def test_a_trainer_that_validates_within_a_fit(pl, trainer_options):
    monitor = AttributionMonitor(METHODS, num_samples=2, on_error="raise")
    inner_trainers = []

    class Validates(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            inner = pl.Trainer(
                **{
                    **trainer_options,
                    "default_root_dir": trainer_options["default_root_dir"] / "i",
                },
                callbacks=[monitor],
            )
            with torch.random.fork_rng():
                data = DataLoader(Blobs(6, 5), batch_size=3)
                inner.validate(classifier(pl), data, verbose=False)
            inner_trainers.append(inner)

    def run(callbacks):
        pl.seed_everything(1, verbose=False)
        return fit(pl, trainer_options, None, callbacks=callbacks, max_epochs=3)

    watched = run([monitor, Validates()])
    assert monitor.state_dict()["validation_runs"] == 3
    assert steps(read(watched).Images(TAG)) == [8, 16, 24]
    assert len(read(watched).Scalars(CORRELATION)) == 2
    for inner in inner_trainers:
        assert steps(read(inner).Images(TAG)) == [0]
    alone = run([AttributionMonitor(METHODS, num_samples=2, on_error="raise")])
    for ours, expected in zip(pictures(watched), pictures(alone), strict=True):
        assert (ours == expected).all()


@pytest.mark.both
def test_a_monitor_can_be_copied_and_pickled(pl, trainer_options, tmp_path):
    import copy

    monitor = copy.deepcopy(AttributionMonitor(METHODS, num_samples=1, on_error="raise"))
    torch.save(monitor, tmp_path / "monitor.pt")
    again = torch.load(tmp_path / "monitor.pt", weights_only=False)
    trainer = fit(pl, trainer_options, again, max_epochs=1)
    assert steps(read(trainer).Images(TAG)) == [8]
