"""Everywhere Lightning runs: loops, modes and ways of training."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
import transformers
from captum.attr import Saliency
from torch import nn
from torch.utils.data import DataLoader

from lightning_callbacks import AttributionMonitor
from tests.lightning_callbacks.models import Blobs, classifier, loaders
from tests.lightning_callbacks.runs import METHODS, fit, read, steps

TAG = "attribution_sample_0/label/saliency"


@pytest.mark.both
def test_fast_dev_run(pl, trainer_options):
    calls = []

    class Counted(Saliency):
        def attribute(self, *args, **options):
            calls.append(1)
            return super().attribute(*args, **options)

    monitor = AttributionMonitor({"counted": Counted}, on_error="raise")
    fit(pl, trainer_options, monitor, fast_dev_run=True)
    assert len(calls) == 2  # the label's map, and that of the predicted class


@pytest.mark.both
def test_the_test_has_tags_of_its_own(pl, trainer_options):
    monitor = AttributionMonitor(METHODS, num_samples=2, every_n_validations=5, on_error="raise")
    trainer = fit(pl, trainer_options, monitor)
    for _ in range(2):
        trainer.test(trainer.lightning_module, loaders()[1], verbose=False)
    events = read(trainer)
    assert steps(events.Images("attribution_test_sample_1/label/saliency")) == [16, 16]
    assert steps(events.Images(TAG)) == [8], "the test is no validation run"
    (correlation,) = events.Scalars("attribution_test/rank_correlation/saliency")
    assert correlation.value == pytest.approx(1, abs=1e-6)
    assert monitor.state_dict()["validation_runs"] == 2


def test_barebones_mode_explains_nothing(pl, trainer_options):
    class Never(Saliency):
        def __init__(self, module):
            raise AssertionError

    monitor = AttributionMonitor({"never": Never}, on_error="raise")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        barebones=True,
        max_epochs=1,
        callbacks=[monitor],
        default_root_dir=trainer_options["default_root_dir"],
    )
    with pytest.warns(UserWarning, match="barebones"):
        trainer.fit(module_without_logging(pl), *loaders())
    assert trainer.global_step == 8


def module_without_logging(pl):
    class Quiet(type(classifier(pl))):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    return Quiet()


@pytest.mark.both
def test_the_sanity_check_is_skipped(pl, trainer_options):
    monitor = AttributionMonitor(METHODS, num_samples=1, on_error="raise")
    trainer = fit(pl, trainer_options, monitor, num_sanity_val_steps=2, max_epochs=1)
    assert steps(read(trainer).Images(TAG)) == [8]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"val_check_interval": 0.5}, [4, 8, 12, 16]),
        ({"check_val_every_n_epoch": 2, "max_epochs": 4}, [16, 32]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 6}, [6, 12]),
        ({"accumulate_grad_batches": 4}, [2, 4]),
        ({"overfit_batches": 2}, [2, 4]),
        ({"limit_val_batches": 1}, [8, 16]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_when_validation_runs(pl, trainer_options, options, expected):
    monitor = AttributionMonitor({"saliency": Saliency}, num_samples=3, on_error="raise")
    trainer = fit(pl, trainer_options, monitor, **options)
    assert steps(read(trainer).Images(TAG)) == expected


def test_samples_are_those_of_the_first_loader(pl, trainer_options):
    seen = []

    class Seen(Saliency):
        def attribute(self, inputs, **options):
            seen.append(inputs.detach().clone())
            return super().attribute(inputs, **options)

    validation = [DataLoader(Blobs(10, seed), batch_size=4) for seed in (2, 3, 4)]
    monitor = AttributionMonitor({"seen": Seen}, ("label",), num_samples=3, on_error="raise")
    fit(pl, trainer_options, monitor, data=(loaders()[0], validation), max_epochs=1)
    assert torch.equal(torch.cat(seen), Blobs(10, 2).images[:3])


class Named(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    index: torch.Tensor


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor
    source: str = "here"


FORMS = {
    "dataclass": Sample,
    "named tuple": lambda x, y: Named(x, y, torch.arange(len(y))),
    "BatchEncoding": lambda x, y: transformers.BatchEncoding({"x": x, "labels": y}),
    "dict": lambda x, y: {"x": x, "y": y},
    "tuple": lambda x, y: (x, y),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_batches(pl, trainer_options, form):
    class Reading(type(classifier(pl))):
        def _read(self, batch):
            if form == "tuple":
                return batch
            if dataclasses.is_dataclass(batch) or form == "named tuple":
                return batch.x, batch.y
            return batch["x"], batch["labels" if form == "BatchEncoding" else "y"]

    def collate(samples):
        images, labels = zip(*samples, strict=True)
        return FORMS[form](torch.stack(images), torch.stack(labels))

    data = [DataLoader(Blobs(8, seed), batch_size=4, collate_fn=collate) for seed in (1, 2)]
    monitor = AttributionMonitor(METHODS, num_samples=5, on_error="raise")
    trainer = fit(pl, trainer_options, monitor, Reading(), data, max_epochs=1)
    assert len(read(trainer).Tags()["images"]) == 5 * 2 * 2


def two_players(pl):
    class TwoPlayers(type(classifier(pl))):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.critic = nn.Linear(3, 1)

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                loss = super().training_step(batch, batch_idx) + self.critic.weight.square().sum()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            parts = self.model.parameters(), self.critic.parameters()
            return [torch.optim.SGD(part, lr=0.1) for part in parts]

    torch.manual_seed(0)
    return TwoPlayers()


@pytest.mark.slow
def test_manual_optimisation_with_several_optimizers(pl, trainer_options):
    states = []
    for callbacks in ([AttributionMonitor(METHODS, num_samples=2, on_error="raise")], []):
        pl.seed_everything(3, verbose=False)
        module = two_players(pl)
        trainer = fit(pl, trainer_options, None, module, callbacks=callbacks, val_check_interval=3)
        states.append(module.state_dict())
        if callbacks:
            # The batches, as Lightning's own metrics have them: its global step counts the steps of
            # every optimizer.
            assert steps(read(trainer).Images(TAG)) == [2, 5, 10, 13]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_logs_and_counts_are_those_of_the_validation(pl, trainer_options):
    class Talkative(type(classifier(pl))):
        def __init__(self):
            super().__init__()
            self.seen = 0

        def forward(self, x):
            scores = super().forward(x)
            self.seen += len(x)
            self.log("mean_score", scores.mean())
            return scores

    def run(callbacks):
        pl.seed_everything(3, verbose=False)
        module = Talkative()
        trainer = fit(pl, trainer_options, None, module, callbacks=callbacks)
        events = read(trainer)
        scalars = {tag for tag in events.Tags()["scalars"] if not tag.startswith("attribution")}
        assert {"mean_score", "val_loss"} <= scalars
        logged = {tag: [event.value for event in events.Scalars(tag)] for tag in scalars}
        return module.seen, logged

    assert run([AttributionMonitor(METHODS, num_samples=2, on_error="raise")]) == run([])


@pytest.mark.slow
def test_a_batch_of_several_loaders_at_once(pl, trainer_options):
    class Together(type(classifier(pl))):
        def validation_step(self, batch, batch_idx):
            self(batch["left"][0])

    loader = loaders()[1]
    combined = pl.utilities.CombinedLoader({"left": loader, "right": loader}, "max_size")
    monitor = AttributionMonitor(
        # Loaders make lists of pairs.
        METHODS,
        num_samples=5,
        batch_to_inputs=lambda batch: batch["left"],
        on_error="raise",
    )
    trainer = fit(pl, trainer_options, monitor, Together(), (loaders()[0], combined))
    assert len(read(trainer).Tags()["images"]) == 5 * 2 * 2


@pytest.mark.both
@pytest.mark.parametrize("when", ["before", "after"])
def test_averaged_weights_are_explained(pl, trainer_options, when):
    if not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("this version of Lightning has no weight averaging")
    seen = []

    class Seen(Saliency):
        def attribute(self, inputs, **options):
            seen.append(self.forward_func.model[0].weight.detach().clone())
            return super().attribute(inputs, **options)

    def run(callbacks):
        pl.seed_everything(3, verbose=False)
        module = classifier(pl)
        fit(pl, trainer_options, None, module, callbacks=callbacks, max_epochs=1)
        return module.state_dict()

    average = pl.callbacks.EMAWeightAveraging(decay=0.9)
    monitor = AttributionMonitor({"seen": Seen}, num_samples=1, on_error="raise")
    averaged = run([monitor, average] if when == "before" else [average, monitor])
    # After the training the module has the averaged weights, and no step follows the validation.
    assert torch.equal(seen[-1], averaged["model.0.weight"])
    assert not torch.equal(seen[-1], run([])["model.0.weight"])
    plain = run([pl.callbacks.EMAWeightAveraging(decay=0.9)])
    torch.testing.assert_close(averaged, plain, rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_modules_are_explained_and_compiled_no_more_often(pl, trainer_options):
    def run(callbacks):
        torch.compiler.reset()
        compiled = []

        def backend(graph, inputs):
            compiled.append(graph)
            return graph.forward

        pl.seed_everything(3, verbose=False)
        module = classifier(pl)
        module.model = torch.compile(module.model, backend=backend)
        trainer = fit(pl, trainer_options, None, module, callbacks=callbacks, val_check_interval=3)
        return module.state_dict(), len(compiled), trainer

    monitor = AttributionMonitor(METHODS, num_samples=3, on_error="raise")
    watched, count, trainer = run([monitor])
    assert len(read(trainer).Tags()["images"]) == 3 * 2 * 2
    plain, plain_count, _ = run([])
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert count == plain_count > 0
