"""The part of a module that is explained, and errors before the first step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from captum_transformer import AttnLRP
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.models import CLASSES, Blobs, classifier, loaders, network
from tests.lightning_callbacks.runs import METHODS, decode, fit, read, steps

TAG = "attribution_sample_0/label/saliency"


def without_forward(pl, **options):
    class WithoutForward(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.ModuleDict({"inner": network()})
            self.steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            return F.cross_entropy(self.net["inner"](batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.net["inner"](batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    torch.manual_seed(0)
    return WithoutForward()


CHOICES = {
    "name": {"model": "net.inner"},
    "function": {"model": lambda module: module.net["inner"]},
    "forward": {"forward": lambda module, x: module.net["inner"](x)},
    "both": {"model": "net.inner", "forward": lambda model, x: {"logits": model(x)}["logits"]},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_model_is_a_part_of_the_module(pl, trainer_options, choice):
    def run(module, **options):
        pl.seed_everything(1, verbose=False)
        monitor = AttributionMonitor(METHODS, num_samples=2, on_error="raise", **options)
        trainer = fit(pl, trainer_options, monitor, module, max_epochs=1)
        return [decode(event) for event in read(trainer).Images(TAG)]

    class Called(type(without_forward(pl))):
        def forward(self, x):
            return self.net["inner"](x)

    torch.manual_seed(0)
    expected = run(Called())
    (picture,) = run(without_forward(pl), **CHOICES[choice])
    assert (picture == expected[0]).all()


@pytest.mark.both
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"WithoutForward has no forward.*'net'.*model="),
        ({"model": "net"}, "ModuleDict has no forward"),
        ({"model": "net.iner"}, r"no such submodule.*net\.inner"),
        ({"model": "steps"}, "is int of the WithoutForward"),
        ({"model": "net.inner", "layers": ["net.inner.0"]}, "no such submodules"),
    ],
)
def test_impossible_settings_are_reported_at_setup(pl, trainer_options, options, said):
    module = without_forward(pl)
    with pytest.raises(MisconfigurationException, match=said):
        fit(pl, trainer_options, AttributionMonitor(METHODS, **options), module)
    assert module.steps == 0


def test_layers_are_those_of_the_model(pl, trainer_options):
    monitor = AttributionMonitor(
        METHODS,
        num_samples=2,
        layers=["2"],
        on_error="raise",
        model="net.inner",
        forward=lambda model, x: model(x),
    )
    trainer = fit(pl, trainer_options, monitor, without_forward(pl), max_epochs=1)
    assert "attribution/layers/2/saliency" in read(trainer).Tags()["histograms"]


@pytest.mark.both
def test_a_model_made_in_configure_model(pl, trainer_options):
    class Later(type(without_forward(pl))):
        def __init__(self):
            super().__init__()
            del self.net

        def configure_model(self):
            self.net = nn.ModuleDict({"inner": network()})

    monitor = AttributionMonitor(METHODS, num_samples=1, model="net.inner", on_error="raise")
    trainer = fit(pl, trainer_options, monitor, Later(), max_epochs=1)
    assert steps(read(trainer).Images(TAG)) == [8]


def test_a_module_that_takes_the_whole_batch(pl, trainer_options):
    class TakesBatch(type(classifier(pl))):
        def forward(self, batch):
            return {
                "features": batch["pixel_values"].flatten(1),
                "scores": self.model(batch["pixel_values"]),
            }

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch)["scores"], batch["labels"])

        def validation_step(self, batch, batch_idx):
            self(batch)

    monitor = AttributionMonitor(
        METHODS,
        num_samples=2,
        batch_to_inputs=lambda batch: (batch["pixel_values"], batch["labels"]),
        forward=lambda module, x: module({"pixel_values": x})["scores"],
        on_error="raise",
    )
    trainer = fit(pl, trainer_options, monitor, TakesBatch(), loaders("mapping"), max_epochs=1)
    assert len(read(trainer).Tags()["images"]) == 2 * 2 * 2


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_several_outputs_that_may_be_scores_are_refused(pl, trainer_options, form):
    class WithFeatures(type(classifier(pl))):
        def forward(self, x):
            features, scores = x.flatten(1), self.model(x)
            return (features, scores) if form == "tuple" else {"f": features, "s": scores}

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self(batch[0])

    monitor = AttributionMonitor({"lrp": AttnLRP}, ("predicted",), num_samples=2)
    with pytest.warns(UserWarning, match=r"each of them may be the scores.*forward=lambda"):
        trainer = fit(pl, trainer_options, monitor, WithFeatures(), max_epochs=1)
    assert not read(trainer).Tags()["images"]
    key = 1 if form == "tuple" else "s"
    chosen = AttributionMonitor(
        METHODS, ("predicted",), 2, forward=lambda module, x: module(x)[key], on_error="raise"
    )
    trainer = fit(pl, trainer_options, chosen, WithFeatures(), max_epochs=1)
    assert len(read(trainer).Tags()["images"]) == 2 * 2


def test_outputs_without_classes_are_reported_before_the_first_step(pl, trainer_options):
    class Squares(type(classifier(pl))):
        def forward(self, x):
            return x

        def training_step(self, batch, batch_idx):
            raise AssertionError("a step of the training")

        def validation_step(self, batch, batch_idx):
            self(batch[0])

    monitor = AttributionMonitor(METHODS, on_error="raise")
    with pytest.raises(ValueError, match="one score per class"):
        fit(pl, trainer_options, monitor, Squares(), num_sanity_val_steps=2)


class Labelled(Dataset):
    def __init__(self, labels):
        self.labels, self.images = labels, Blobs(len(labels), 2).images

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def validated(pl, options, labels, monitor, collate=None):
    class Unlabelled(type(classifier(pl))):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    loader = DataLoader(Labelled(labels), batch_size=len(labels), collate_fn=collate)
    trainer = pl.Trainer(**options, callbacks=[monitor])
    trainer.validate(Unlabelled(), loader, verbose=False)
    return read(trainer)


def listed(samples):
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), labels


@pytest.mark.parametrize(
    ("labels", "collate"),
    [
        (["cat", "dog"], None),
        ([{"boxes": torch.ones(2, 4), "labels": torch.ones(2)}] * 2, listed),
        ([{"boxes": torch.ones(2, 4)}] * 2, None),
    ],
    ids=["texts", "detections", "a mapping"],
)
def test_labels_that_are_no_numbers(pl, trainer_options, labels, collate):
    monitor = AttributionMonitor(METHODS)
    with pytest.warns(UserWarning, match=r"The labels are a.*no numbers.*batch_to_inputs"):
        validated(pl, trainer_options, labels, monitor, collate)
    monitor = AttributionMonitor(
        METHODS, ("predicted",), batch_to_inputs=lambda batch: (batch[0], None), on_error="raise"
    )
    events = validated(pl, trainer_options, labels, monitor, collate)
    assert len(events.Tags()["images"]) == 2 * 2


def test_a_label_that_the_model_has_no_output_for(pl, trainer_options):
    monitor = AttributionMonitor(METHODS, ("label",))
    with pytest.warns(UserWarning, match=rf"{CLASSES} outputs.*\[7\]"):
        events = validated(pl, trainer_options, [1, 7, 0], monitor)
    samples = {tag.split("/")[0] for tag in events.Tags()["images"]}
    assert samples == {"attribution_sample_0", "attribution_sample_2"}
