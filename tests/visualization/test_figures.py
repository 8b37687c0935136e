"""Figures with grids of maps, matrices of tokens, and maps of layers."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

from captum_transformer.visualization import (
    common_scale,
    detections,
    image_and_text,
    image_grid,
    map_grid,
    overlay,
    spectrogram,
    to_array,
    to_display,
    token_matrix,
    video_frames,
)
from tests.visualization.frames import IMAGE, drawn


def test_no_figure_touches_pyplot():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    to_array(image_grid(IMAGE, {"a": torch.rand(4, 6)}))
    assert plt.get_fignums() == before


def test_pixels_of_a_figure():
    figure = image_grid(IMAGE, {"a": torch.rand(4, 6)})
    pixels = to_array(figure)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*figure.canvas.get_width_height()[::-1], 3)
    assert (pixels[0, 0] == 255).all(), "the margin is white"


def test_a_grid_shows_the_overlays():
    rows = {
        "lrp": {"cat": torch.randn(3, 16, 24), "dog": torch.rand(4, 6)},
        "gae": {"dog": torch.rand(2, 3)},
    }
    figure = image_grid(IMAGE, rows, smooth=True)
    frames = np.array(figure.axes).reshape(2, 3)
    np.testing.assert_array_equal(drawn(frames[0, 0]), to_display(IMAGE))
    for (row, column), (name, title) in {
        (0, 1): ("lrp", "cat"), (0, 2): ("lrp", "dog"), (1, 2): ("gae", "dog"),
    }.items():  # fmt: skip
        expected = overlay(IMAGE, rows[name][title], smooth=True)
        np.testing.assert_array_equal(drawn(frames[row, column]), expected)
    assert not frames[1, 1].images
    assert [frame.get_ylabel() for frame in frames[:, 0]] == ["lrp", "gae"]
    assert [frame.get_title() for frame in frames[0]] == ["input", "cat", "dog"]


def test_each_row_may_have_its_image():
    images = {"one": IMAGE, "two": torch.rand(3, 8, 8)}
    maps = {"one": {"a": torch.rand(4, 6)}, "two": {"a": torch.rand(2, 2)}}
    figure = image_grid(images, maps)
    np.testing.assert_array_equal(drawn(figure.axes[3]), overlay(images["two"], maps["two"]["a"]))
    with pytest.raises(ValueError, match="one image for each row"):
        image_grid({"one": IMAGE}, maps)


def test_a_common_scale_makes_maps_comparable():
    weak, strong = torch.rand(16, 24) / 10, torch.rand(16, 24)
    strong[0, 0] = 1.5
    shared = common_scale([weak, strong], quantile=1.0)
    assert shared["scale"] == 1.5
    assert shared["sign"] == "positive"
    figure = image_grid(IMAGE, {"weak": weak, "strong": strong}, **shared)
    np.testing.assert_array_equal(
        drawn(figure.axes[1]), overlay(IMAGE, weak, scale=1.5, sign="positive")
    )
    bar = figure.axes[-1]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0", "1.5"]


def test_maps_under_one_bar_have_one_kind_of_colours():
    positive, signed = torch.rand(16, 24), torch.randn(16, 24)
    figure = image_grid(IMAGE, {"a": positive, "b": signed}, scale=2.0)
    np.testing.assert_array_equal(
        drawn(figure.axes[1]), overlay(IMAGE, positive, scale=2.0, sign="signed")
    )
    labels = [label.get_text() for label in figure.axes[-1].get_yticklabels()]
    assert labels == ["−2", "0", "2"]


def test_without_a_scale_each_map_shows_its_own():
    figure = image_grid(
        IMAGE, {"a": torch.ones(4, 6), "b": torch.zeros(4, 6), "c": -torch.ones(4, 6)}
    )
    assert [axes.get_xlabel() for axes in figure.axes[1:]] == ["0 … 1", "all zero", "±1"]


def test_a_common_scale_keeps_given_options():
    assert common_scale([torch.rand(2, 2)], scale=3.0, smooth=True) == {
        "scale": 3.0, "smooth": True, "sign": "positive",
    }  # fmt: skip
    assert common_scale([torch.zeros(2, 2)])["scale"] == 1
    with pytest.raises(ValueError, match="no attribution"):
        common_scale([])


@pytest.mark.parametrize("attributions", [{}, {"row": {}}])
def test_an_empty_grid_is_refused(attributions):
    with pytest.raises(ValueError, match="no attribution"):
        image_grid(IMAGE, attributions)


def test_a_mixture_of_rows_and_maps_is_refused():
    with pytest.raises(ValueError, match="not a mixture"):
        image_grid(IMAGE, {"a": torch.rand(4, 6), "b": {"c": torch.rand(4, 6)}})


def test_names_are_not_read_as_formulas():
    name = "$\\frac{"
    figure = image_grid(IMAGE, {name: torch.rand(4, 6)}, title=name)
    to_array(figure)
    to_array(token_matrix(torch.rand(1, 1), [name], [name], title=name))
    assert figure.axes[1].get_title() == name


def test_a_matrix_names_rows_and_columns():
    values = torch.tensor([[0.0, 2.0, -4.0]])
    figure = token_matrix(values, ["\n"], ["a", "b" * 500, " "])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["⏎"]
    above = [label.get_text() for label in axes.get_xticklabels()]
    assert (above[0], above[2]) == ("a", "␣")
    assert above[1].endswith("…")
    np.testing.assert_allclose(drawn(axes), [[0, 0.5, -1]])
    for wrong in (torch.rand(3, 1), torch.rand(1, 1, 3)):
        with pytest.raises(ValueError, match=r"\(1, 3\)"):
            token_matrix(wrong, ["a"], list("abc"))


def test_maps_of_layers_have_one_scale():
    layers = {"layer 0": torch.full((2, 4, 5), 0.5), "layer 1": torch.ones(4, 5)}
    frames = np.array(map_grid(layers).axes[:4]).reshape(2, 2)
    assert (drawn(frames[0, 1]) == 0.5).all()
    assert (drawn(frames[1, 0]) == 1).all()
    assert not frames[1, 1].images
    with pytest.raises(ValueError, match="layer 7"):
        map_grid({"layer 7": torch.rand(5)})


def test_image_and_text():
    picture = image_and_text(IMAGE, torch.rand(4, 6), ["a", "b"], torch.tensor([1.0, -1.0]))
    assert picture.dtype == np.uint8
    size = picture[10:266, 10:394]
    shown = overlay(IMAGE, torch.rand(4, 6)).shape
    assert size.shape[0] / size.shape[1] == shown[0] / shown[1]
    right = picture[:, 394 + 90 :].reshape(-1, 3).astype(int)
    assert (right[:, 0] > right[:, 2] + 100).any()
    assert (right[:, 2] > right[:, 0] + 100).any()


def test_a_long_text_makes_the_picture_higher():
    short, long = (
        image_and_text(IMAGE, torch.rand(4, 6), ["token"] * n, torch.rand(n), height=64)
        for n in (2, 200)
    )
    assert long.shape[0] > short.shape[0]
    assert long.shape[1] == short.shape[1]


def test_nan_is_refused_everywhere():
    bad = torch.full((4, 6), float("nan"))
    box = torch.tensor([[2.0, 4.0, 12.0, 10.0]])
    for draw in (
        lambda: image_grid(IMAGE, {"a": bad}),
        lambda: token_matrix(bad, list("abcd"), list("abcdef")),
        lambda: map_grid({"a": bad}),
        lambda: detections(IMAGE, box, [bad], ["a"]),
        lambda: spectrogram(torch.rand(4, 6), bad),
        lambda: video_frames(torch.rand(4, 3, 8, 12), bad[None].expand(4, 4, 6)),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            draw()


def test_the_style_of_the_user_is_kept():
    before = dict(mpl.rcParams)
    to_array(spectrogram(torch.rand(4, 8), torch.rand(8)))
    assert dict(mpl.rcParams) == before
