import matplotlib as mpl
import numpy as np
import pytest
import torch

from captum_transformer.visualization import (
    account_bars,
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

IMAGE = torch.rand(3, 16, 24)


def drawn(axes):
    """The pixels that a frame shows."""
    (image,) = axes.images
    return np.asarray(image.get_array())


def test_no_figure_touches_pyplot():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    to_array(image_grid(IMAGE, {"a": torch.rand(4, 6)}))
    assert plt.get_fignums() == before


def test_pixels_of_a_figure():
    pixels = to_array(image_grid(IMAGE, {"a": torch.rand(4, 6)}))
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert (pixels == 255).any()


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


def test_without_a_scale_each_map_tells_its_own():
    figure = image_grid(
        IMAGE, {"a": torch.ones(4, 6), "b": torch.zeros(4, 6), "c": -torch.ones(4, 6)}
    )
    assert [axes.get_xlabel() for axes in figure.axes[1:]] == ["0 … 1", "all zero", "±1"]


def test_common_scale_keeps_what_is_given():
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


def test_names_are_no_formulas():
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


def test_boxes_lie_where_they_are():
    box = torch.tensor([[2.0, 4.0, 12.0, 10.0]])
    figure = detections(IMAGE, box, [torch.rand(4, 6)], ["cat"])
    for axes in figure.axes:
        (patch,) = axes.patches
        # Pixel 2 begins half a pixel left of its centre.
        assert patch.get_bbox().bounds == (1.5, 3.5, 10.0, 6.0)


@pytest.mark.parametrize(
    "box", [[0.1, 0.2, 0.5, 0.6], [12, 4, 2, 10], [30, 2, 40, 8], [2, float("nan"), 4, 5]]
)
def test_what_is_no_box_in_pixels_is_refused(box):
    with pytest.raises(ValueError, match="in pixels of an image of 24 x 16"):
        detections(IMAGE, torch.tensor([box]), [torch.rand(4, 6)], ["cat"])


def test_each_box_has_its_map_and_label():
    boxes = torch.tensor([[2.0, 4.0, 12.0, 10.0]])
    with pytest.raises(ValueError, match="2 labels need boxes"):
        detections(IMAGE, boxes, [torch.rand(4, 6)], ["cat", "dog"])


def test_many_boxes_wrap_to_rows():
    boxes = torch.tensor([[2.0, 4.0, 12.0, 10.0]]).repeat(6, 1)
    figure = detections(IMAGE, boxes, torch.rand(6, 4, 6), list("abcdef"), columns=4, scale=1.0)
    assert len(figure.axes) == 1 + 6 + 1  # the image, the boxes and the colour bar


def test_a_moment_of_a_spectrogram_keeps_its_sum():
    moments = torch.tensor([1.0, -2.0])
    figure = spectrogram(torch.randn(5, 8), moments, seconds=4.0)
    (up, down) = (patch.get_data().values for patch in figure.axes[1].patches)
    heights = up + down
    assert heights[0] > 0 > heights[-1]
    # A step's height is relevance per second, so its area is the relevance.
    np.testing.assert_allclose(heights.reshape(2, 4).sum(1) * 0.5, [1, -2], rtol=1e-5)


def test_a_wave_has_its_spectrogram():
    rate, length = 1000, 3000
    time = torch.arange(length) / rate
    wave = torch.sin(2 * torch.pi * 250 * time)
    values = torch.zeros(length)
    values[1500] = 2.0
    figure = spectrogram(wave, values, sample_rate=rate)
    shown = figure.axes[0].images[0]
    assert shown.get_extent() == pytest.approx([0, 3, 0, 0.5])
    # A tone of 250 Hz is a line half way up.
    assert abs(drawn(figure.axes[0])[..., 0].mean(1).argmax() - 64) <= 1
    up = figure.axes[1].patches[0].get_data()
    peak = up.values.argmax()
    assert up.edges[peak] <= 1.5 <= up.edges[peak + 1]
    assert up.values.sum() * (up.edges[1] - up.edges[0]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("sound", "values", "message"),
    [
        (torch.rand(8), torch.rand(8), "sample_rate"),
        (torch.rand(4, 8), torch.rand(3), "t divides 8"),
        (torch.rand(4, 8), torch.rand(3, 8), "b divides 4"),
        (torch.rand(2, 4, 8), torch.rand(4, 8), "one sample at a time"),
    ],
)
def test_sounds_that_do_not_fit_are_refused(sound, values, message):
    with pytest.raises(ValueError, match=message):
        spectrogram(sound, values)


def test_all_frames_of_a_video_have_one_scale_and_one_brightness():
    video = torch.stack([torch.full((3, 8, 8), level) for level in (0.0, 0.25, 0.5, 1.0)])
    tubes = torch.tensor([0.5, 2.0])[:, None, None].expand(2, 4, 4)
    figure = video_frames(video, tubes, quantile=1.0)
    frames = np.array(figure.axes[:8]).reshape(2, 4)
    assert [int(drawn(frame)[0, 0, 0]) for frame in frames[0]] == [0, 64, 128, 255]
    np.testing.assert_array_equal(
        drawn(frames[1, 1]),
        overlay((video[1] * 255).round().to(torch.uint8), tubes[0], scale=2.0),
    )


def test_a_video_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(T, C, H, W\)"):
        video_frames(torch.rand(3, 8, 8), torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="t divides 6"):
        video_frames(torch.rand(6, 3, 8, 8), torch.rand(4, 8, 8))


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


def test_bars_are_the_shares_and_the_rest_is_one():
    shares = {"inputs": 0.5, "biases": 0.6, "added constants": -0.2, "activations": 0.1}
    axes = account_bars(shares, most=3).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 60, -10])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["inputs", "biases", "2 more"]
    with pytest.raises(ValueError, match="no shares"):
        account_bars({})


NAMES = [f"biases: language_model.layers.{i}.post_attention_layernorm (rms_norm)" for i in range(4)]


@pytest.mark.parametrize("width", [4.0, 7.0])
@pytest.mark.parametrize(
    "shares",
    [
        dict(zip(NAMES, (1.0, -0.5, 1e4, -1e-4), strict=True)),
        {"inputs": -1.0},
        {"inputs": 0.5, "joined constants: " + "x" * 90: 0.5},
        {"inputs": 0.5, "added constants: " + ", ".join(f"blocks.{i}.bias" for i in range(9)): 0.5},
    ],
)
def test_texts_beside_bars_lie_within_the_figure_and_over_nothing_else(shares, width):
    figure = account_bars(
        shares, "A caption that takes more than four inches of the page", width=width
    )
    to_array(figure)
    (axes,), (numbers,) = figure.axes, figure.axes[0].child_axes
    texts = [*axes.get_yticklabels(), *numbers.get_yticklabels(), *figure.texts]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) == 2 * len(shares) + 2
    bars = [bar.get_window_extent() for bar in axes.patches]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in (*boxes[:i], *bars))


def test_shares_of_nothing_are_not_drawn():
    with pytest.raises(ValueError, match="'biases', 'activations' are not finite numbers"):
        account_bars({"inputs": 0.5, "biases": float("nan"), "activations": float("inf")})
