import io
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from captum_transformer.visualization import panel
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.flavors import MisconfigurationException
from tests.lightning_callbacks.models import CLASSES, Blobs, classifier, loaders

METHODS = {"saliency": Saliency, "integrated": IntegratedGradients}


def fit(pl, options, monitor, module=None, data=None, **more):
    folder = options["default_root_dir"]
    more.setdefault("logger", pl.loggers.TensorBoardLogger(folder, name="run"))
    trainer = pl.Trainer(**{**options, "callbacks": [monitor], "max_epochs": 2, **more})
    trainer.fit(classifier(pl) if module is None else module, *(data or loaders()))
    return trainer


def read(trainer):
    return EventAccumulator(
        trainer.logger.log_dir, size_guidance={"images": 0, "scalars": 0}
    ).Reload()


def decode(event):
    return (imread(io.BytesIO(event.encoded_image_string))[..., :3] * 255).round().astype(np.uint8)


def steps(events):
    return [event.step for event in events]


def test_one_stable_tag_per_sample_slot_and_method(pl, trainer_options):
    monitor = AttributionMonitor(
        METHODS, classes=("label", "predicted", 2), num_samples=3, prefix="why", on_error="raise"
    )
    trainer = fit(pl, trainer_options, monitor, val_check_interval=4)
    events = read(trainer)
    assert set(events.Tags()["images"]) == {
        f"why/sample_{sample}/{slot}/{method}"
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
            f"label: {names[label]} · predicted: {names[predicted]} "
            f"({probabilities[row, predicted]:.2f})\n"
            f"integrated → {names[label]}, p = {probabilities[row, label]:.2f}"
        )
        expected = panel(
            images[row], attributions[row].float(), caption, sign="absolute", channels="mean"
        )
        picture = decode(events.Images(f"attribution/sample_{row}/label/integrated")[-1])
        # Batch sizes differ, and with them the last bits.
        assert np.abs(picture.astype(int) - expected).max() <= 2


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
    assert steps(events.Images("attribution/sample_0/label/saliency")) == [2, 8, 14]
    assert monitor.state_dict() == {"validation_runs": 8}


def test_a_checkpoint_keeps_the_count(pl, trainer_options, tmp_path):
    monitors = [AttributionMonitor(METHODS, num_samples=1, prefix=prefix) for prefix in "ab"]
    trainer = fit(pl, trainer_options, monitors[0], callbacks=monitors)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = AttributionMonitor(METHODS, num_samples=1, prefix="b")
    more = pl.Trainer(
        **trainer_options,
        callbacks=[resumed],
        max_epochs=3,
        logger=pl.loggers.TensorBoardLogger(tmp_path, name="more"),
    )
    more.fit(classifier(pl), *loaders(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.state_dict() == {"validation_runs": 3}


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
    assert {tag.split("/")[1] for tag in tags} == {"sample_0", "sample_1", "sample_2"}


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
    labelled = {t.split("/")[1] for t in read(trainer).Tags()["images"] if "/label/" in t}
    # The first multi-hot sample has no positive class.
    assert labelled == {f"sample_{i}" for i in range(form == "multi-hot", 3)}


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


def test_the_precision_of_the_trainer(pl, trainer_options):
    dtypes = set()

    class Recorded(Saliency):
        def attribute(self, inputs, **options):
            dtypes.add(self.forward_func(inputs).dtype)
            return super().attribute(inputs, **options)

    for precision, dtype in (("bf16-mixed", torch.bfloat16), ("64-true", torch.float64)):
        dtypes.clear()
        monitor = AttributionMonitor({"saliency": Recorded}, num_samples=2, on_error="raise")
        fit(pl, trainer_options, monitor, precision=precision, max_epochs=1)
        assert dtypes == {dtype}


def test_a_failing_method_warns_once_and_the_others_go_on(pl, trainer_options):
    class Failing(Saliency):
        def attribute(self, *args, **options):
            raise ZeroDivisionError("what a day")

    methods = {"failing": Failing, "saliency": Saliency}
    with pytest.warns(UserWarning, match="what a day") as caught:
        trainer = fit(pl, trainer_options, AttributionMonitor(methods, num_samples=2))
    (warning,) = [w for w in caught if "ZeroDivisionError: what a day" in str(w.message)]
    assert "'failing'" in str(warning.message)
    assert {tag.split("/")[-1] for tag in read(trainer).Tags()["images"]} == {"saliency"}
    with pytest.raises(ZeroDivisionError):
        fit(pl, trainer_options, AttributionMonitor(methods, num_samples=2, on_error="raise"))


def test_attributions_without_colour_are_named(pl, trainer_options):
    class Nan(Saliency):
        def attribute(self, *args, **options):
            return super().attribute(*args, **options) * float("nan")

    with pytest.warns(UserWarning, match="NaN or infinite"):
        fit(pl, trainer_options, AttributionMonitor({"nan": Nan}, num_samples=2))


def test_a_batch_that_cannot_be_read_stops_nothing(pl, trainer_options):
    monitor = AttributionMonitor(METHODS, batch_to_inputs=lambda batch: batch[0])
    with pytest.warns(UserWarning, match="batch_to_inputs must return") as caught:
        trainer = fit(pl, trainer_options, monitor)
    assert len([w for w in caught if "AttributionMonitor couldn't" in str(w.message)]) == 1
    assert trainer.global_step == 16


def test_a_run_that_was_cut_short_leaves_nothing(pl, trainer_options):
    counter = iter(range(100))

    def fails_once(batch):
        if next(counter) == 1:
            raise OSError("gone for a moment")
        return batch[0], batch[1]

    monitor = AttributionMonitor(METHODS, num_samples=6, batch_to_inputs=fails_once)
    with pytest.warns(UserWarning, match="gone for a moment"):
        trainer = fit(pl, trainer_options, monitor)
    events = read(trainer)
    assert steps(events.Images("attribution/sample_5/label/saliency")) == [16]
    assert len(events.Tags()["images"]) == 6 * 2 * 2


def test_no_logger(pl, trainer_options):
    with pytest.raises(MisconfigurationException, match="no logger"):
        fit(pl, trainer_options, AttributionMonitor(METHODS), logger=False)
    exceptions = pl.utilities.exceptions
    with pytest.raises(exceptions.MisconfigurationException):
        fit(pl, trainer_options, AttributionMonitor(METHODS), logger=False)


def test_a_logger_without_images_gets_files(pl, trainer_options, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="csv")
    monitor = AttributionMonitor(METHODS, num_samples=2, on_error="raise")
    with pytest.warns(UserWarning, match="PNG files") as caught:
        fit(pl, trainer_options, monitor, logger=logger)
    assert len([w for w in caught if "PNG files" in str(w.message)]) == 1
    files = sorted(Path(logger.log_dir).rglob("*.png"))
    assert len(files) == 2 * 2 * 2 * 2
    assert files[0].relative_to(logger.log_dir).as_posix() == (
        "attribution/sample_0/label/integrated/step_00000008.png"
    )
    assert (imread(files[0])[..., :3] * 255).std() > 1
    metrics = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert "attribution/rank_correlation/saliency" in metrics


def test_files_are_not_needed_beside_a_logger_with_images(pl, trainer_options, tmp_path):
    both = [pl.loggers.TensorBoardLogger(tmp_path, name="t"), pl.loggers.CSVLogger(tmp_path, "c")]
    trainer = fit(
        pl,
        trainer_options,
        AttributionMonitor(METHODS, num_samples=1, on_error="raise"),
        logger=both,
    )
    assert not list(tmp_path.rglob("*.png"))
    assert read(trainer).Tags()["images"]


def test_fast_dev_run(pl, trainer_options):
    calls = []

    class Counted(Saliency):
        def attribute(self, *args, **options):
            calls.append(1)
            return super().attribute(*args, **options)

    monitor = AttributionMonitor({"counted": Counted}, on_error="raise")
    fit(pl, trainer_options, monitor, fast_dev_run=True)
    assert calls


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
        {"on_error": "ignore"},
    ],
)
def test_arguments_without_meaning_are_refused(wrong):
    with pytest.raises(MisconfigurationException):
        AttributionMonitor(**{"methods": METHODS, **wrong})
