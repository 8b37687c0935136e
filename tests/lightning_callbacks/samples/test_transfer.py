"""Explained batches pass the same hooks of the trainer as those of the model."""

import pytest
import torch
from captum.attr import Saliency
from torch.utils.data import DataLoader

from lightning_callbacks import AttributionMonitor
from tests.lightning_callbacks.explained import explainer
from tests.lightning_callbacks.models import Blobs, classifier, loaders
from tests.lightning_callbacks.runs import fit

DATA = Blobs(3, 2)


def seen_by(seen):
    class Seen(Saliency):
        def attribute(self, inputs, **options):
            seen.append(inputs.detach().clone())
            return super().attribute(inputs, **options)

    return Seen


def normalising(pl):
    class Normalising(type(classifier(pl))):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            return x - 0.5, y

        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            # Augments where it trains; in place, as kornia may.
            return (x.mul_(0 if self.trainer.training else 4)), y

    return Normalising()


def data_module(pl):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loaders()[0]

        def val_dataloader(self):
            return DataLoader(DATA, batch_size=3)

        def predict_dataloader(self):
            return DataLoader(DATA, batch_size=3)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            return x / 8, y

    return Data()


@pytest.mark.both
@pytest.mark.parametrize("source", ["loader", "given"])
@pytest.mark.parametrize("owner", ["module", "data module"])
def test_the_samples_of_a_monitor(pl, trainer_options, source, owner):
    seen = []
    given = (DATA.images.clone(), DATA.labels) if source == "given" else None
    monitor = AttributionMonitor(
        {"seen": seen_by(seen)}, ("label",), num_samples=3, samples=given, on_error="raise"
    )
    module = normalising(pl)
    if owner == "module":
        data = loaders()[0], DataLoader(DATA, batch_size=3)
        expected = (DATA.images - 0.5) * 4
    else:
        data = (data_module(pl),)
        # The hook that both override is that of the data module, the other is still the module's.
        expected = (DATA.images - 0.5) / 8
    trainer = fit(pl, trainer_options, monitor, module, max_epochs=1, data=data)
    assert torch.equal(torch.cat(seen), expected)
    if given is not None:
        assert torch.equal(given[0], DATA.images), "what the user passed is not written into"
    assert trainer.training or trainer.state.finished


@pytest.mark.both
@pytest.mark.parametrize("owner", ["module", "data module"])
def test_an_explainer_module_explains_what_its_model_gets(pl, trainer_options, owner):
    seen = []
    module = explainer(pl, normalising(pl), seen_by(seen), target="label")
    trainer = pl.Trainer(**trainer_options, logger=False)
    if owner == "module":
        trainer.predict(module, DataLoader(DATA, batch_size=3))
        expected = (DATA.images - 0.5) * 4
    else:
        trainer.predict(module, datamodule=data_module(pl))
        expected = (DATA.images - 0.5) / 8
    assert torch.equal(torch.cat(seen), expected)


@pytest.mark.both
def test_a_wrapped_module_without_hooks_leaves_those_of_lightning(pl):
    module = explainer(pl, classifier(pl), Saliency)
    assert not {"on_before_batch_transfer", "on_after_batch_transfer"} & vars(module).keys()


@pytest.mark.both
def test_given_samples_that_a_hook_cannot_take_are_refused_before_the_first_step(
    pl, trainer_options
):
    class NeverTrains(type(normalising(pl))):
        def training_step(self, batch, batch_idx):
            raise AssertionError("a step of the training")

    monitor = AttributionMonitor({"saliency": Saliency}, samples=DATA.images)
    with pytest.raises(Exception, match="`samples` of AttributionMonitor can't be read"):
        fit(pl, trainer_options, monitor, NeverTrains())


@pytest.mark.both
def test_a_wrapped_module_may_log(pl, trainer_options):
    class Talkative(type(classifier(pl))):
        def forward(self, x):
            scores = super().forward(x)
            self.log("mean_score", scores.mean())
            return scores

    module = explainer(pl, Talkative(), Saliency)
    trainer = pl.Trainer(**trainer_options, logger=False)
    (batch,) = trainer.predict(module, DataLoader(DATA, batch_size=3))
    assert batch.attributions["input_0"].shape == DATA.images.shape
    assert "log" not in vars(module.model)
