"""Channels, rows, columns and frames are found, or given by `layout`."""

import pytest
import torch
from captum.attr import InputXGradient, Saliency
from torch import nn

from lightning_callbacks import AttributionMonitor, Faithfulness
from lightning_callbacks.samples.batch import Samples
from lightning_callbacks.samples.layout import Layout, Layouts
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.runs import read


@pytest.mark.parametrize(
    ("letters", "shape", "image"),
    [
        ("CHW", (12, 4, 6), (12, 4, 6)),
        ("HWC", (4, 6, 3), (3, 4, 6)),
        ("HW", (4, 6), (1, 4, 6)),
        ("TCHW", (5, 3, 4, 6), (3, 4, 30)),
        ("CTHW", (3, 5, 4, 6), (3, 4, 30)),
        ("THWC", (5, 4, 6, 3), (3, 4, 30)),
        ("THW", (5, 4, 6), (1, 4, 30)),
    ],
)
def test_each_order_becomes_an_image_and_is_found_again(letters, shape, image):
    layout, values = Layout(letters), torch.rand(2, *shape)
    arranged = layout.arrange(values)
    assert arranged.shape == (2, *image)
    assert torch.equal(layout.restore(arranged, values), values)


def test_a_pixel_stays_where_it_is():
    video = torch.rand(1, 5, 4, 6, 3)
    assert torch.equal(Layout("THWC").arrange(video)[0, :, 2, 6 * 3 + 1], video[0, 3, 2, 1])


@pytest.mark.parametrize("letters", ["CH", "HWHC", "NHW", "", 3, {"x": "W"}])
def test_bad_layouts_are_refused(letters):
    with pytest.raises(MisconfigurationException, match="layout names the dimensions"):
        AttributionMonitor({"saliency": Saliency}, layout=letters)


def test_a_layout_by_name_holds_for_that_input_alone():
    samples = Samples((torch.rand(2, 4, 6, 3), torch.rand(2, 7)), None)
    shown, restored = Layouts({"input_0": "HWC"}).arranged(samples)
    assert [values.shape for values in shown.inputs] == [(2, 3, 4, 6), (2, 7)]
    assert torch.equal(restored(shown).inputs[0], samples.inputs[0])


class Linear(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Linear(torch.Size(shape).numel(), 2)

    def forward(self, x):
        return self.layer(x.flatten(1).float())


def fit(pl, folder, values, **options):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Linear(values.shape[1:])

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return 0 * self(batch[0]).sum()

        def validation_step(self, batch, _):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(values, torch.arange(len(values)) % 2), 2
    )
    options = {"num_samples": 1, "classes": (1,), **options}
    monitor = AttributionMonitor({"grad": InputXGradient}, **options)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[monitor],
        logger=pl.loggers.TensorBoardLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    pl.seed_everything(0)
    trainer.fit(Module(), loader, loader)
    return trainer


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 8, 8), {}),
        ((1, 8, 8), {}),
        ((2, 8, 8), {"layout": "CHW"}),
        ((4, 8, 8), {"layout": "CHW"}),
        ((12, 8, 8), {"layout": "CHW"}),
        ((8, 8, 3), {"layout": "HWC"}),
        ((6, 3, 8, 8), {"layout": "TCHW"}),
        ((8, 20), {"layout": "HW"}),
    ],
)
def test_inputs_of_all_kinds_have_pictures(pl, tmp_path, shape, options):
    trainer = fit(pl, tmp_path, torch.rand(4, *shape), on_error="raise", **options)
    (tag,) = read(trainer).Tags()["images"]
    assert tag == "attribution_sample_0/class_1/grad"


@pytest.mark.parametrize("shape", [(2, 8, 8), (12, 8, 8), (8, 8, 3), (5, 3, 8, 8)])
def test_ambiguous_layouts_are_asked_for(pl, tmp_path, shape):
    with pytest.warns(UserWarning, match="layout=.CHW. for an image of"):
        fit(pl, tmp_path, torch.rand(4, *shape))


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (torch.rand(4, 5000), {}, "5000 features are too many for a picture"),
        (torch.rand(4, 1, 3000), {"layout": "HW"}, "1 x 3000 values are too wide"),
        (torch.ones(4, 3, 8, 8).to(torch.uint8), {}, "inputs are torch.uint8.*images.float"),
        (torch.rand(4, 8, 8), {"layout": "HWC"}, "'HWC' doesn't fit an input of the shape"),
    ],
)
def test_inputs_without_a_picture_are_warned_of(pl, tmp_path, values, options, said):
    with pytest.warns(UserWarning, match=said):
        fit(pl, tmp_path, values, **options)


def test_numbers_do_not_depend_on_the_order_of_dimensions(pl, tmp_path):
    images = torch.rand(4, 3, 6, 8)
    options = {"faithfulness": Faithfulness(steps=4), "on_error": "raise"}

    first = fit(pl, tmp_path / "first", images, **options)
    last = fit(
        pl,
        tmp_path / "last",
        images.permute(0, 2, 3, 1),
        layout="HWC",
        forward=lambda module, x: module.net(x.permute(0, 3, 1, 2)),
        **options,
    )
    assert len(first.callback_metrics) == 2
    torch.testing.assert_close(dict(first.callback_metrics), dict(last.callback_metrics))
