"""A training that is resumed goes on with the same pictures."""

import warnings

import pytest
from torch.utils.data import DataLoader

from lightning_callbacks import AttributionMonitor
from tests.lightning_callbacks.models import Blobs, classifier, loaders
from tests.lightning_callbacks.runs import METHODS, fit


def resume(pl, options, tmp_path, validation):
    monitors = [AttributionMonitor(METHODS, num_samples=2, prefix=prefix) for prefix in "ab"]
    trainer = fit(pl, options, monitors[0], callbacks=monitors)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = AttributionMonitor(METHODS, num_samples=2, prefix="b", every_n_validations=3)
    more = pl.Trainer(
        **options,
        callbacks=[resumed],
        max_epochs=4,
        logger=pl.loggers.TensorBoardLogger(tmp_path, name="more"),
    )
    more.fit(classifier(pl), loaders()[0], validation, ckpt_path=tmp_path / "last.ckpt")
    return monitors, resumed


@pytest.mark.both
def test_the_count_goes_on_with_the_same_samples(pl, trainer_options, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The samples that are explained")
        monitors, resumed = resume(pl, trainer_options, tmp_path, loaders()[1])
    before, after = monitors[0].state_dict(), resumed.state_dict()
    assert before["validation_runs"] == 2
    assert after["validation_runs"] == 4
    assert len(set(before["samples"].values())) == 2
    assert after["samples"] == before["samples"]
    assert len(str(before["samples"])) < 200, "a checkpoint holds no samples"
    # The second monitor has another prefix, of one letter, too.
    assert {tag[1:] for tag in after["scales"]} >= {tag[1:] for tag in before["scales"]}


def test_other_samples_are_noticed(pl, trainer_options, tmp_path):
    others = DataLoader(Blobs(10, 77), batch_size=4)
    with pytest.warns(UserWarning, match="not those of the checkpoint"):
        monitors, resumed = resume(pl, trainer_options, tmp_path, others)
    assert resumed.state_dict()["samples"] != monitors[0].state_dict()["samples"]


def test_a_checkpoint_before_the_first_validation_keeps_what_it_knows():
    monitor = AttributionMonitor(METHODS)
    monitor.load_state_dict({"validation_runs": 5, "samples": {"0": "0" * 16}})
    state = {"validation_runs": 5, "samples": {"0": "0" * 16}, "scales": {}}
    assert monitor.state_dict() == state
