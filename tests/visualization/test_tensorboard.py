import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from captum_transformer.visualization import (
    log_attributions,
    log_token_attributions,
    panel,
    token_strip,
    token_table,
)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8)


@pytest.fixture
def maps():
    return torch.randn(2, 3, 8, 8)


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()


def decode(event):
    return (imread(io.BytesIO(event.encoded_image_string))[..., :3] * 255).round().astype(np.uint8)


def test_pictures_arrive_as_they_are_drawn(tmp_path, images, maps):
    with SummaryWriter(tmp_path) as writer:
        for step in (3, 5):
            log_attributions(
                writer,
                "attribution",
                images,
                {"a": maps * step, "b": -maps},
                global_step=step,
                captions=["one", "two"],
                scale=1.0,
            )
    events = read(tmp_path)
    assert sorted(events.Tags()["images"]) == [
        f"attribution/sample_{i}/{key}" for i in (0, 1) for key in "ab"
    ]
    first, second = events.Images("attribution/sample_1/a")
    assert (first.step, second.step) == (3, 5)
    expected = panel(images[1], maps[1] * 5, "two", scale=1.0, font_scale=2.0)
    np.testing.assert_array_equal(decode(second), expected)


def test_one_attribution_needs_no_name(tmp_path, images, maps):
    with SummaryWriter(tmp_path) as writer:
        log_attributions(writer, "x", images, maps.sum(1), global_step=0, names=["cat", "dog"])
    assert sorted(read(tmp_path).Tags()["images"]) == ["x/cat", "x/dog"]


@pytest.mark.parametrize("wrong", [{"names": ["a"]}, {"captions": ["a"] * 3}])
def test_numbers_have_to_fit(tmp_path, images, maps, wrong):
    with SummaryWriter(tmp_path) as writer, pytest.raises(ValueError, match=next(iter(wrong))):
        log_attributions(writer, "x", images, maps, global_step=0, **wrong)
    with SummaryWriter(tmp_path) as writer, pytest.raises(ValueError, match="attributions"):
        log_attributions(writer, "x", images, maps[:1], global_step=0)


def test_texts(tmp_path):
    tokens = [["a", "fine", "film"], ["bad"]]
    values = [torch.tensor([0.1, 0.9, 0.2]), torch.tensor([-1.0])]
    with SummaryWriter(tmp_path) as writer:
        log_token_attributions(writer, "text", tokens, {"m": values}, global_step=7, table=True)
    events = read(tmp_path)
    (event,) = events.Images("text/sample_0/m")
    np.testing.assert_array_equal(decode(event), token_strip(tokens[0], values[0], font_scale=2.0))
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("text/sample_1/m")]
    (table,) = events.Tensors(tag)
    assert table.tensor_proto.string_val[0].decode() == token_table(tokens[1], values[1])


def test_a_table_needs_a_writer_for_text():
    class ImagesOnly:
        def add_image(self, tag, img_tensor, global_step=None, *, dataformats="HWC"):
            raise AssertionError

    with pytest.raises(TypeError, match="add_text"):
        log_token_attributions(
            ImagesOnly(), "x", [["a"]], [torch.ones(1)], global_step=0, table=True
        )
