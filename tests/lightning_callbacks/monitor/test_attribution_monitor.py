import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from captum_transformer.visualization import panel
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.models import CLASSES, Blobs, classifier, loaders
from tests.lightning_callbacks.runs import METHODS, decode, fit, read, steps


def test_one_stable_tag_per_sample_slot_and_method(pl, trainer_options):
    monitor = AttributionMonitor(
        METHODS, classes=("label", "predicted", 2), num_samples=3, prefix="why", on_error="raise"
    )
    trainer = fit(pl, trainer_options, monitor, val_check_interval=4)
    events = read(trainer)
    assert set(events.Tags()["images"]) == {
        f"why_sample_{sample}/{slot}/{method}"
        for sample in range(3)
        for slot in ("label", "predicted", "class_2")
        for method in METHODS
    }
    for tag in events.Tags()["images"]:
        # Sanity checks don't count, and the step is the optimizer's.
        assert steps(events.Images(tag)) == [4, 8, 12, 16]
    deltas = events.Scalars("why/convergence_delta/integrated")
    assert steps(deltas) == [4, 8, 12, 16]
    assert all(0 <= event.value < 1e-2 for event in deltas)
    assert "why/convergence_delta/saliency" not in events.Tags()["scalars"]
    for method in METHODS:
        correlations = events.Scalars(f"why/rank_correlation/{method}")
        assert steps(correlations) == [8, 12, 16]
        assert all(-1 <= event.value <= 1 for event in correlations)
        # A model that learns less and less changes its reasons less and less.
        assert correlations[-1].value > correlations[0].value


def test_the_pictures_are_those_of_the_final_model(pl, trainer_options):
    monitor = AttributionMonitor(
        METHODS,
        num_samples=6,
        class_names=["cat", "dog", "emu"],
        heatmap={"sign": "absolute", "channels": "mean"},
        scale="own",
    )
    module = classifier(pl)
    trainer = fit(pl, trainer_options, monitor, module)
    module.eval()
    data = Blobs(10, 2)
    images, labels = data.images[:6], data.labels[:6]
    attributions = IntegratedGradients(module).attribute(images, target=labels)
    probabilities = module(images).softmax(1)
    events = read(trainer)
    names = ["cat", "dog", "emu"]
    for row in range(6):
        label, predicted = int(labels[row]), int(probabilities[row].argmax())
        caption = (
            f"integrated → {names[label]}, p = {probabilities[row, label]:.2f}\n"
            f"label: {names[label]}\n"
            f"predicted: {names[predicted]} ({probabilities[row, predicted]:.2f})"
        )
        expected = panel(
            images[row],
            attributions[row].float(),
            caption,
            sign="absolute",
            channels="mean",
            font_scale=2.0,
            note="scale of this step alone",
        )
        picture = decode(events.Images(f"attribution_sample_{row}/label/integrated")[-1])
        # Batch sizes differ, and with them the last bits.
        assert np.abs(picture.astype(int) - expected).max() <= 2


@pytest.mark.both
def test_validate_runs_in_inference_mode(pl, trainer_options, tmp_path):
    monitor = AttributionMonitor(METHODS, num_samples=3, on_error="raise")
    trainer = pl.Trainer(
        **trainer_options, callbacks=[monitor], logger=pl.loggers.TensorBoardLogger(tmp_path)
    )
    module = classifier(pl)
    for _ in range(2):
        trainer.validate(module, loaders()[1], verbose=False)
    events = read(trainer)
    assert len(events.Tags()["images"]) == 3 * 2 * 2
    # An unchanged model gives unchanged maps.
    for method in METHODS:
        (event,) = events.Scalars(f"attribution/rank_correlation/{method}")
        assert event.value == pytest.approx(1, abs=1e-6)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_every_nth_run(pl, trainer_options):
    monitor = AttributionMonitor(METHODS, num_samples=1, every_n_validations=3, on_error="raise")
    trainer = fit(pl, trainer_options, monitor, val_check_interval=2)
    events = read(trainer)
    assert steps(events.Images("attribution_sample_0/label/saliency")) == [2, 8, 14]
    assert monitor.state_dict()["validation_runs"] == 8


def test_a_changed_prediction_is_not_compared(pl, trainer_options, tmp_path):
    module = classifier(pl, nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)))
    linear = module.model[1]
    monitor = AttributionMonitor({"ig": IntegratedGradients}, ("predicted",), on_error="raise")
    trainer = pl.Trainer(
        **trainer_options, callbacks=[monitor], logger=pl.loggers.TensorBoardLogger(tmp_path)
    )
    for favourite in (0, 1, 1):
        with torch.no_grad():
            linear.bias.copy_(100 * torch.eye(CLASSES)[favourite])
        trainer.validate(module, loaders()[1], verbose=False)
    assert len(read(trainer).Scalars("attribution/rank_correlation/ig")) == 1


@pytest.mark.parametrize("size", [1, 4, 16])
def test_samples_are_the_first_ones_whatever_the_batch_size(pl, trainer_options, size):
    seen = []

    class Seen(Saliency):
        def attribute(self, inputs, **options):
            seen.append(inputs.detach().clone())
            return super().attribute(inputs, **options)

    monitor = AttributionMonitor({"seen": Seen}, ("label",), num_samples=6, on_error="raise")
    fit(pl, trainer_options, monitor, data=loaders(batch_size=size), max_epochs=1)
    assert torch.equal(torch.cat(seen), Blobs(10, 2).images[:6])


class Stream(IterableDataset):
    def __init__(self, count):
        self.data = Blobs(count, 2)

    def __iter__(self):
        return iter([self.data[index] for index in range(len(self.data))])


@pytest.mark.parametrize("others", [0, 1])
def test_a_loader_with_fewer_samples_and_without_length(pl, trainer_options, others):
    validation = [DataLoader(Stream(3), batch_size=2)]
    validation += [DataLoader(Blobs(4, 3), batch_size=2)] * others
    monitor = AttributionMonitor(METHODS, ("label",), num_samples=8, on_error="raise")
    trainer = fit(pl, trainer_options, monitor, data=(loaders()[0], validation))
    tags = read(trainer).Tags()["images"]
    assert {tag.split("/")[0] for tag in tags} == {f"attribution_sample_{i}" for i in range(3)}


def test_given_samples(pl, trainer_options):
    data = Blobs(3, 9)
    monitor = AttributionMonitor(
        METHODS, ("label",), samples=(data.images, data.labels), num_samples=1, on_error="raise"
    )
    trainer = fit(pl, trainer_options, monitor, precision="64-true")
    assert len(read(trainer).Tags()["images"]) == 3 * 2


@pytest.mark.parametrize("form", ["tuple", "mapping", "multi-hot"])
def test_forms_of_batches(pl, trainer_options, form):
    loss = nn.functional.binary_cross_entropy_with_logits if form == "multi-hot" else None
    module = classifier(pl, loss=loss) if loss else classifier(pl)
    monitor = AttributionMonitor(METHODS, ("label", "predicted"), num_samples=3, on_error="raise")
    trainer = fit(pl, trainer_options, monitor, module, loaders(form))
    labelled = {t.split("/")[0] for t in read(trainer).Tags()["images"] if "/label/" in t}
    # The first multi-hot sample has no positive class.
    assert labelled == {f"attribution_sample_{i}" for i in range(form == "multi-hot", 3)}


@pytest.mark.slow
def test_own_reading_with_additional_arguments(pl, trainer_options):
    class Scaled(type(classifier(pl))):
        def forward(self, x, scale=1.0, power=1):
            return super().forward(x * scale.reshape(-1, 1, 1, 1) ** power)

        def _read(self, batch):
            return batch[0], batch[1]

        def validation_step(self, batch, batch_idx):
            self(batch[0], torch.ones(len(batch[0])))

        def training_step(self, batch, batch_idx):
            return self(batch[0], torch.ones(len(batch[0]))).sum()

    monitor = AttributionMonitor(
        METHODS,
        num_samples=6,
        batch_to_inputs=lambda batch: (batch[0], batch[1], (torch.ones(len(batch[0])), 2)),
        on_error="raise",
    )
    trainer = fit(pl, trainer_options, monitor, Scaled())
    assert len(read(trainer).Tags()["images"]) == 6 * 2 * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": {}},
        {"methods": Saliency},
        {"methods": {"a/b": Saliency}},
        {"methods": {"a": "Saliency"}},
        {"classes": ()},
        {"classes": "label"},
        {"classes": ("target",)},
        {"classes": (True,)},
        {"classes": (1, 1)},
        {"num_samples": 0},
        {"every_n_validations": 0},
        {"internal_batch_size": -1},
        {"heatmap": {"sine": "positive"}},
        {"heatmap": {"sign": "negative"}},
        {"precision": "bf16"},
        {"scale": "same"},
        {"on_error": "ignore"},
    ],
)
def test_arguments_without_meaning_are_refused(wrong):
    with pytest.raises(MisconfigurationException):
        AttributionMonitor(**{"methods": METHODS, **wrong})


@pytest.mark.both
def test_unknown_layers_are_refused_before_the_first_step(pl, trainer_options):
    class Untrained(type(classifier(pl))):
        def training_step(self, batch, batch_idx):
            raise AssertionError

    monitor = AttributionMonitor(METHODS, layers=["model.5", "modl.1"])
    with pytest.raises(MisconfigurationException, match=r"\['modl.1'\], .* Did you mean model\.1"):
        fit(pl, trainer_options, monitor, Untrained(), num_sanity_val_steps=0)
