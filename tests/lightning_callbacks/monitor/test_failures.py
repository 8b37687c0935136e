"""If an explanation fails, training continues unchanged."""

import gc
import weakref
from typing import ClassVar

import pytest
import torch
from captum.attr import Saliency

from lightning_callbacks import AttributionMonitor
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.isolation.test_bit_identity import Careless, assert_same, train
from tests.lightning_callbacks.models import Blobs, classifier, loaders
from tests.lightning_callbacks.runs import METHODS, fit, read, steps


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
    assert steps(events.Images("attribution_sample_5/label/saliency")) == [16]
    assert len(events.Tags()["images"]) == 6 * 2 * 2


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


class Greedy(Careless):
    """Runs out of memory in the backward pass, after everything else has been spoilt."""

    held: ClassVar = []

    def attribute(self, inputs, **options):
        super().attribute(inputs, **options)
        activations = torch.zeros(1000, requires_grad=True) * 1
        self.held.append(weakref.ref(activations))
        # Larger than any machine's memory: the allocator itself says no.
        activations.register_hook(lambda gradient: torch.empty(2**58))
        activations.sum().backward()


def test_out_of_memory_is_survived_bit_by_bit(pl, trainer_options):
    monitor = AttributionMonitor({"greedy": Greedy, "saliency": Saliency}, num_samples=3)
    Greedy.held.clear()
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="num_samples=") as caught:
            watched = train(pl, trainer_options, [monitor])
        assert len(Greedy.held) == 4
        assert [reference() for reference in Greedy.held] == [None] * 4, (
            "freed without a collection"
        )
    finally:
        gc.enable()
    (warning,) = [w for w in caught if "AttributionMonitor couldn't" in str(w.message)]
    assert "'greedy'" in str(warning.message)
    assert "RuntimeError" in str(warning.message)
    assert_same(watched, train(pl, trainer_options, []))


@pytest.mark.both
def test_an_interruption_is_no_failure(pl, trainer_options):
    class Interrupted(Saliency):
        def attribute(self, *args, **options):
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(pl, trainer_options, AttributionMonitor({"interrupted": Interrupted}, num_samples=1))


def test_a_logger_that_fails_takes_nothing_from_the_others(pl, trainer_options, tmp_path):
    class Full(pl.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any("attribution" in tag for tag in metrics):
                raise OSError("no space left")

        def log_image(self, *args, **options):
            raise OSError("no space left")

        def log_text(self, *args, **options):
            raise OSError("no space left")

    both = [Full(tmp_path, "full"), pl.loggers.TensorBoardLogger(tmp_path, "good")]
    with pytest.warns(UserWarning, match="no space left") as caught:
        trainer = fit(pl, trainer_options, AttributionMonitor(METHODS, num_samples=2), logger=both)
    assert len([w for w in caught if "AttributionMonitor couldn't" in str(w.message)]) == 2
    trainer.loggers = both[1:]
    events = read(trainer)
    assert len(events.Tags()["images"]) == 2 * 2 * 2
    assert steps(events.Scalars("attribution/rank_correlation/saliency")) == [16]


def test_given_samples_that_cannot_be_read_are_refused_at_the_setup(pl, trainer_options):
    monitor = AttributionMonitor(METHODS, samples=["no", "samples", "here"])
    trainer = pl.Trainer(**trainer_options, callbacks=[monitor], max_epochs=1)
    with pytest.raises(MisconfigurationException, match=r"samples.*a list of"):
        trainer.fit(classifier(pl), *loaders())
    assert trainer.global_step == 0


def test_a_class_that_does_not_exist_is_named(pl, trainer_options):
    with pytest.warns(UserWarning, match="class id 7 doesn't exist: the model has 3 outputs"):
        fit(pl, trainer_options, AttributionMonitor(METHODS, classes=(7,), num_samples=1))


def test_fewer_at_a_time_give_the_same(pl, trainer_options):
    sizes, sums = [], []

    class Seen(Saliency):
        def attribute(self, inputs, **options):
            result = super().attribute(inputs, **options)
            sizes.append(len(inputs))
            sums.extend(result.flatten(1).sum(1).tolist())
            return result

    data = Blobs(5, 9)
    for size in (None, 2):
        monitor = AttributionMonitor(
            {"seen": Seen},
            ("label",),
            samples=(data.images, data.labels),
            internal_batch_size=size,
            on_error="raise",
        )
        fit(pl, trainer_options, monitor, max_epochs=1)
    assert sizes == [5, 2, 2, 1]
    assert sums[:5] == pytest.approx(sums[5:], rel=1e-4)


def test_a_forward_pass_without_gradients_is_said(pl, trainer_options):
    monitor = AttributionMonitor(
        {"saliency": Saliency}, forward=torch.no_grad()(lambda module, x: module(x))
    )
    with pytest.warns(UserWarning, match=r"may run under torch.no_grad\(\), detach, or round"):
        fit(pl, trainer_options, monitor)
