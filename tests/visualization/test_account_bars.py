"""Shares of an account are drawn as bars."""

import pytest

from captum_transformer.visualization import account_bars, to_array


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
def test_texts_beside_bars_overlap_nothing(shares, width):
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


def test_shares_that_are_nan_are_refused():
    with pytest.raises(ValueError, match="'biases', 'activations' are not finite numbers"):
        account_bars({"inputs": 0.5, "biases": float("nan"), "activations": float("inf")})
