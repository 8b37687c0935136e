"""Trainings and predictions on a device that is not the CPU."""

import pytest
import torch
from captum.attr import Saliency
from torch.utils.data import DataLoader

from captum_transformer import AttnLRP, GenericAttentionRelevance, TransformerAttribution
from captum_transformer.calling.isolation import isolated
from lightning_callbacks import AttributionMonitor, RelevanceDataset, RelevanceWriter
from tests.accelerator.lightning import on
from tests.accelerator.module import NAME, Memory
from tests.lightning_callbacks.explained import explainer, predict
from tests.lightning_callbacks.isolation.test_bit_identity import (
    METHODS,
    Careless,
    assert_same,
    train,
)
from tests.lightning_callbacks.isolation.test_isolation import make
from tests.lightning_callbacks.models import classifier
from tests.lightning_callbacks.runs import decode, fit, read

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:The method '(careless|failing)' has changed"),
]

OURS = {"transformer": TransformerAttribution, "generic": GenericAttentionRelevance}


@pytest.fixture
def options(trainer_options):
    del trainer_options["accelerator"]
    return trainer_options


# The emulated one casts to both half precisions in one place; float16 also scales gradients.
@pytest.mark.parametrize(
    "precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.cuda), "16-mixed"]
)
def test_training_is_bit_identical(pl, options, device, precision):
    monitor = AttributionMonitor(METHODS, num_samples=2, on_error="raise")
    watched = train(pl, options, [monitor], **on(pl, device, precision))
    assert monitor.state_dict()["validation_runs"] == 4
    assert_same(watched, train(pl, options, [], **on(pl, device, precision)))


def test_training_is_bit_identical_where_memory_runs_out(pl, options, device, monkeypatch):
    size = 2**28 if device.type == "cuda" else 2**16
    monkeypatch.setattr(Memory, "limit", Memory.allocated + 2**22)

    class Full(Careless):
        def attribute(self, inputs, **options):
            super().attribute(inputs, **options)
            blocks = []
            while True:
                blocks.append(torch.empty(size, device=inputs.device))

    monitor = AttributionMonitor({"full": Full, "saliency": Saliency}, num_samples=3)
    with pytest.warns(UserWarning, match="OutOfMemoryError"):
        watched = train(pl, options, [monitor], **on(pl, device))
    if device.type == "cuda":
        assert torch.cuda.memory_reserved() < 2**30
    assert_same(watched, train(pl, options, [], **on(pl, device)))


@pytest.mark.parametrize("precision", ["trainer", "float32"])
def test_explained_in_the_precision_asked_for(pl, options, device, precision):
    dtypes = set()

    class Recorded(Saliency):
        def attribute(self, inputs, **options):
            dtypes.add((inputs.dtype, self.forward_func(inputs).dtype))
            return super().attribute(inputs, **options)

    monitor = AttributionMonitor(
        {"saliency": Recorded}, num_samples=2, on_error="raise", precision=precision
    )
    fit(pl, {**options, **on(pl, device, "16-mixed")}, monitor, max_epochs=1)
    own = torch.float16 if precision == "trainer" else torch.float32
    assert dtypes == {(torch.float32, own)}


def test_pictures_are_those_of_the_cpu(pl, options, device, vit, images):
    def logged(where):
        monitor = AttributionMonitor(OURS, (0, 1), num_samples=3, on_error="raise")
        logger = pl.loggers.TensorBoardLogger(options["default_root_dir"])
        trainer = pl.Trainer(**{**options, **where}, callbacks=[monitor], logger=logger)
        trainer.validate(classifier(pl, vit.float()), DataLoader(images, 3), verbose=False)
        return read(trainer)

    images.tensors = (images.tensors[0].float(), images.tensors[1])
    here, there = logged({"accelerator": "cpu"}), logged(on(pl, device))
    tags = here.Tags()["images"]
    assert set(there.Tags()["images"]) == set(tags)
    assert len(tags) == 3 * 2 * 2
    for tag in tags:
        one, other = (decode(log.Images(tag)[0]).astype(int) for log in (here, there))
        assert abs(one - other).max() <= 2


def test_what_is_written_is_what_the_cpu_says(pl, options, device, tmp_path, vit, images):
    writer = RelevanceWriter(tmp_path / "out", every_n_batches=2)
    module = explainer(pl, vit, AttnLRP, target="label")
    predict(pl, {**options, **on(pl, device)}, module, DataLoader(images, batch_size=4), writer)

    pixels, labels = images.tensors
    expected = AttnLRP(vit.cpu()).attribute(pixels, target=labels)
    read = RelevanceDataset(tmp_path / "out")
    assert read.sample_ids.tolist() == list(range(11))
    for number, item in enumerate(read):
        found = item.attributions["input_0"]
        torch.testing.assert_close(found, expected[number].float(), rtol=1e-4, atol=1e-8)
        assert found.device.type == "cpu"


def test_the_generator_of_the_device(device):
    module = make().to(device)
    backend = torch.get_device_module(device)
    backend.manual_seed_all(3)
    expected = torch.rand(3, device=device)
    backend.manual_seed_all(3)
    with isolated(module):
        first = torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), expected)
    with isolated(module):
        assert torch.equal(torch.rand(3, device=device), first)


def test_it_runs_where_it_should(pl, options, device):
    seen = set()

    class Recorded(Saliency):
        def attribute(self, inputs, **options):
            seen.add(inputs.device)
            return super().attribute(inputs, **options)

    fit(pl, {**options, **on(pl, device)}, AttributionMonitor({"saliency": Recorded}))
    assert seen == {device}
    assert device.type in (NAME, "cuda")
