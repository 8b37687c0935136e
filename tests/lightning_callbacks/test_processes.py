"""Two processes: the first explains, nobody waits, and both train as they would without."""

import os

import pytest
import torch
from captum.attr import Saliency
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_callbacks import AttributionMonitor
from lightning_callbacks.flavors import MisconfigurationException
from tests.lightning_callbacks.models import classifier, loaders


def train(pl, options, callbacks):
    pl.seed_everything(7, verbose=False)
    module = classifier(pl)
    # Each process makes its own logger object, and all shall mean the same folder.
    version = "watched" if callbacks else "plain"
    logger = pl.loggers.TensorBoardLogger(options["default_root_dir"], version=version)
    trainer = pl.Trainer(
        **{**options, "devices": 2},
        strategy="ddp_fork",
        logger=logger,
        callbacks=callbacks,
        max_epochs=1,
        val_check_interval=2,
        accumulate_grad_batches=3,
    )
    trainer.fit(module, *loaders())
    return module.state_dict(), logger.log_dir


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_ddp(pl, trainer_options):
    monitor = AttributionMonitor({"saliency": Saliency}, num_samples=2, on_error="raise")
    watched, folder = train(pl, trainer_options, [monitor])
    events = EventAccumulator(folder, size_guidance={"images": 0}).Reload()
    assert len(events.Images("attribution/sample_1/label/saliency")) == 2
    plain, _ = train(pl, trainer_options, [])
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    untrained = classifier(pl).state_dict()
    assert not torch.equal(watched["model.0.weight"], untrained["model.0.weight"])


def test_strategies_that_split_parameters_are_refused(pl, trainer_options):
    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
        """Has the name that counts; the true one needs GPUs."""

    trainer = pl.Trainer(
        **{**trainer_options, "devices": "auto", "accelerator": "auto"},
        strategy=FSDPStrategy("cpu"),
        callbacks=[AttributionMonitor({"saliency": Saliency})],
    )
    with pytest.raises(MisconfigurationException, match="FSDPStrategy: it splits"):
        trainer.fit(classifier(pl), *loaders())
