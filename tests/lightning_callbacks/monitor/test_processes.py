"""Strategies: who explains, that nobody waits, and that all train as they would without."""

import importlib
from functools import partial

import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightning_callbacks import AttributionMonitor
from lightning_callbacks.explanations.checks import check_strategy
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.models import Blobs, classifier
from tests.lightning_callbacks.processes import alone, needs_fork
from tests.lightning_callbacks.runs import METHODS, decode, fit
from tests.lightning_callbacks.strategies import outcome

slow = pytest.mark.slow
cuda = pytest.mark.cuda


@needs_fork
@pytest.mark.parametrize(
    ("strategy", "precision"),
    [
        pytest.param("one device", "bf16-true", marks=slow),
        pytest.param("DDP, two processes", "32-true", marks=slow),
        pytest.param("DDP, samples shared", "bf16-mixed", marks=slow),
        pytest.param("DDP, samples shared", "bf16-true", marks=slow),
        pytest.param("one device", "16-mixed", marks=cuda),
    ],
)
def test_training_is_bit_identical(tmp_path, strategy, precision):
    same, log = alone(outcome, "pytorch_lightning", tmp_path, strategy, precision)
    assert same == "yes"
    events = EventAccumulator(log, size_guidance={"images": 0}).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.endswith("label/careless")]
    assert {tag.split("/")[0] for tag in tags} == {f"attribution_sample_{i}" for i in range(4)}
    runs = {tag: len(events.Images(tag)) for tag in tags}
    assert set(runs.values()) == {14 if strategy == "one device" else 2}


def validate(flavor, options, monitor, devices, several=False):
    """To be run in a process of its own."""
    pl = importlib.import_module(flavor)
    options = {**options, "devices": devices}
    trainer = pl.Trainer(
        **options,
        callbacks=[AttributionMonitor(**monitor)],
        strategy="ddp_fork" if devices > 1 else "auto",
        logger=pl.loggers.TensorBoardLogger(options["default_root_dir"], version=f"on_{devices}"),
    )
    loader = DataLoader(Blobs(10, 2), batch_size=3)
    data = {"first": loader, "second": DataLoader(Blobs(4, 3), batch_size=3)}
    trainer.validate(classifier(pl), data if several else loader, verbose=False)
    return trainer.logger.log_dir


def validated(pl, options, monitor, devices, **more):
    log = alone(partial(validate, **more), pl.__name__, options, monitor, devices)
    return EventAccumulator(log, size_guidance={"images": 0}).Reload()


@pytest.mark.both
@needs_fork
@pytest.mark.parametrize(
    "samples",
    ["given", "of a loader", "of the first of several loaders"],
)
@slow
def test_shared_samples_give_the_log_of_one_process(pl, trainer_options, samples):
    data = Blobs(5, 2)
    monitor = {
        "methods": METHODS,
        "num_samples": 5,
        "samples": (data.images, data.labels) if samples == "given" else None,
        "share_samples": True,
        "on_error": "raise",
    }
    several = "several" in samples
    one, two = logs = [
        validated(pl, trainer_options, monitor, devices, several=several) for devices in (1, 2)
    ]
    assert set(one.Tags()["images"]) == set(two.Tags()["images"])
    assert len(two.Tags()["images"]) == 5 * 2 * 2
    for tag in one.Tags()["images"]:
        first, second = (decode(log.Images(tag)[0]).astype(int) for log in logs)
        # Batch sizes differ, and with them the last bits.
        assert abs(first - second).max() <= 2
    means = [log.Scalars("attribution/convergence_delta/integrated")[0].value for log in logs]
    assert means[0] == pytest.approx(means[1], abs=1e-6)
    left = list(trainer_options["default_root_dir"].glob(".attribution_*"))
    assert not left, "the mailbox is removed"


class FailsElsewhere(IntegratedGradients):
    def attribute(self, *args, **options):
        if self.forward_func.global_rank == 1:
            raise RuntimeError("only here")
        return super().attribute(*args, **options)


@needs_fork
def test_a_failing_process_keeps_no_one_waiting(pl, trainer_options):
    methods = {"fails": FailsElsewhere, "saliency": Saliency}
    monitor = {"methods": methods, "classes": ("label",), "num_samples": 4, "share_samples": True}
    events = validated(pl, trainer_options, monitor, 2)
    tags = set(events.Tags()["images"])
    assert {tag[:20] for tag in tags if tag.endswith("fails")} == {
        "attribution_sample_0",
        "attribution_sample_2",
    }
    assert len([tag for tag in tags if tag.endswith("saliency")]) == 4
    assert "attribution/convergence_delta/fails" in events.Tags()["scalars"]


@pytest.mark.both
def test_fsdp_and_zero_3_are_refused(pl):
    # The first needs a GPU to start, the second a package that needs one.
    with pytest.raises(
        MisconfigurationException, match="FSDPStrategy, which shards the parameters by FSDP1"
    ):
        check_strategy(pl.strategies.FSDPStrategy())

    class DeepSpeedStrategy(pl.strategies.DDPStrategy):
        zero_stage_3 = True

    with pytest.raises(
        MisconfigurationException, match="DeepSpeedStrategy, which shards the parameters by ZeRO-3"
    ):
        check_strategy(DeepSpeedStrategy())
    DeepSpeedStrategy.zero_stage_3 = False
    check_strategy(DeepSpeedStrategy())


@pytest.mark.both
@cuda
def test_fsdp_is_refused_by_a_real_trainer(pl, trainer_options):
    options = {**trainer_options, "accelerator": "gpu"}
    with pytest.raises(
        MisconfigurationException, match="FSDPStrategy, which shards the parameters by FSDP1"
    ):
        fit(pl, options, AttributionMonitor(METHODS), strategy="fsdp")


@pytest.fixture
def process_group(tmp_path):
    distributed = torch.distributed
    meeting = f"file://{tmp_path}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield distributed
    distributed.destroy_process_group()


def split(layer, distributed):
    mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
    parts = distributed.tensor.distribute_tensor(
        layer.weight.data, mesh, [distributed.tensor.Shard(0)]
    )
    layer.weight = torch.nn.Parameter(parts)


def splits_itself(pl, distributed):
    class SplitsItself(type(classifier(pl))):
        def configure_model(self):
            split(self.model[5], distributed)

        def training_step(self, batch, batch_idx):
            raise AssertionError("a step of the training")

    return SplitsItself()


@pytest.mark.parametrize("when", ["before", "in configure_model"])
def test_a_module_that_splits_itself_is_refused_before_the_first_step(
    pl, trainer_options, process_group, when
):
    if when == "before":
        module = classifier(pl)
        split(module.model[5], process_group)
    else:
        module = splits_itself(pl, process_group)
    with pytest.raises(
        MisconfigurationException, match=r"model\.5\.weight' is a DTensor, as of tensor"
    ):
        fit(pl, trainer_options, AttributionMonitor(METHODS), module, num_sanity_val_steps=0)
