import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from captum_transformer.visualization import overlay, panel, to_display
from captum_transformer.visualization.canvas import fit, text_width
from captum_transformer.visualization.panel import format_value


@pytest.fixture
def image():
    return torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def attribution():
    return torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(1))


def contains(picture, part):
    height, width = part.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(picture, (height, width, 3))[:, :, 0]
    return (windows == part).all((-1, -2, -3)).any()


def test_input_and_overlay_are_there_pixel_by_pixel(image, attribution):
    picture = panel(image, attribution, height=16)
    assert contains(picture, to_display(image))
    assert contains(picture, overlay(image, attribution))


def test_small_images_grow_to_sharp_squares(image, attribution):
    picture = panel(image, attribution, height=64)
    assert contains(picture, to_display(image).repeat(4, 0).repeat(4, 1))


def test_large_images_shrink():
    image, relevance = torch.zeros(3, 64, 96), torch.ones(64, 96)
    image[0, :, :48] = image[2, 32:] = 1.0
    relevance[:20] = 0.0
    small = panel(image, relevance, height=64)
    large = (t.repeat_interleave(8, -1).repeat_interleave(8, -2) for t in (image, relevance))
    found = panel(*large, height=64)
    assert found.shape == small.shape
    # Apart from edges, which are smoothed.
    assert (abs(found.astype(int) - small) > 2).mean() < 0.05


def test_the_size_depends_on_the_number_of_caption_lines_only(image, attribution):
    one = panel(image, attribution, "a")
    long = panel(image, attribution, "many words " * 50)
    two = panel(image, attribution, "a\nb")
    assert one.shape == long.shape
    assert two.shape[0] > one.shape[0]


def test_the_caption_is_written(image, attribution):
    empty = panel(image, attribution, " ")
    for caption in ("zebra", "$x_1$ costs 5$", "a\\frac{", "%s {} <b>"):
        assert (panel(image, attribution, caption) != empty).any()


def test_a_dollar_sign_is_no_formula(image, attribution):
    plain = text_width("$") * 2 + text_width("x_1")
    assert text_width("$x_1$") == pytest.approx(plain, abs=4)


def test_text_is_shortened_to_fit():
    text = "a long caption that does not fit"
    short = fit(text, 100)
    assert short.endswith("…")
    assert text.startswith(short[:-1])
    assert text_width(short) <= 100 < text_width(text)
    assert fit("short", 100) == "short"
    assert fit("anything", 0) == "…"


def test_zero_and_constant_maps(image):
    for value in (0.0, 1.0, -1.0):
        picture = panel(image, torch.full((3, 16, 24), value), "constant")
        assert picture.dtype == np.uint8
        assert picture.std() > 0


def test_nan_is_refused(image):
    with pytest.raises(ValueError, match="NaN"):
        panel(image, torch.full((16, 24), float("nan")))


def test_no_height_is_refused(image, attribution):
    with pytest.raises(ValueError, match="height"):
        panel(image, attribution, height=0)


def test_the_same_arguments_give_the_same_picture(image, attribution):
    first, second = (panel(image, attribution, "label: a") for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 0.0123456, -123456.0, 1e-30, -1e-30])
def test_values_are_short(value):
    assert len(format_value(value)) <= 8
    assert float(format_value(value).replace("−", "-")) == pytest.approx(value, rel=0.05)


def test_pyplot_is_left_alone(image, attribution):
    backend, settings = plt.get_backend(), dict(plt.rcParams)
    panel(image, attribution, "caption")
    assert plt.get_fignums() == []
    assert (plt.get_backend(), dict(plt.rcParams)) == (backend, settings)
