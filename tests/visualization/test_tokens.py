import re

import numpy as np
import pytest
import torch
from tensorboard.plugin_util import markdown_to_safe_html

from captum_transformer.visualization import token_strip, token_table
from captum_transformer.visualization.tokens import visible

NASTY = ["**a**", "|", "<b>", "`c`", "_d_", "[e](f)", "\n", " ", "", "&amp;", "#", "\\", "$x$", "é"]


def colours(picture):
    return set(map(tuple, np.unique(picture.reshape(-1, 3), axis=0).tolist()))


def test_lines_wrap():
    values = torch.rand(60)
    narrow = token_strip(["token"] * 60, values, width=200)
    wide = token_strip(["token"] * 60, values, width=800)
    assert narrow.shape[0] > wide.shape[0]
    assert (narrow.shape[1], wide.shape[1]) == (200, 800)


def test_nothing_is_drawn_outside_the_margin():
    picture = token_strip(["a very long token " * 20, "b"], torch.tensor([1.0, -1.0]), width=200)
    assert (picture[:, :9] == 255).all()
    assert (picture[:, -9:] == 255).all()


def test_signs_have_their_colours():
    def of_token(value):
        picture = token_strip(["a"], torch.tensor([value])).astype(int)
        red, _, blue = np.moveaxis(picture[:40], -1, 0)  # above the scale, which has both
        return (red > blue + 80).sum(), (blue > red + 80).sum()

    (reds, none), (nothing, blues) = of_token(1.0), of_token(-1.0)
    assert reds > 100
    assert blues > 100
    assert none == nothing == 0


def test_zeros_have_no_colour():
    picture = token_strip(["a", "b"], torch.zeros(2)).astype(int)
    assert np.ptp(picture, axis=-1).max() <= 2


def test_the_strongest_token_counts_however_many_there_are():
    values = torch.full((1000,), 0.01)
    values[0] = 1
    assert colours(token_strip(["x"] * 1000, values)) >= {
        c for c in colours(token_strip(["x"], torch.ones(1))) if c[0] > c[2] + 150
    }


def test_embeddings_are_summed():
    values = torch.randn(4, 7)
    np.testing.assert_array_equal(
        token_strip(list("abcd"), values), token_strip(list("abcd"), values.sum(1))
    )


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), ()])
def test_arguments_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="2 tokens need an attribution"):
        token_strip(["a", "b"], torch.zeros(shape))


def test_no_token_is_refused():
    with pytest.raises(ValueError, match="0 tokens"):
        token_strip([], torch.zeros(0))


def test_nan_is_refused():
    for draw in (token_strip, token_table):
        with pytest.raises(ValueError, match="NaN"):
            draw(["a"], torch.tensor([float("nan")]))


def test_any_token_can_be_drawn():
    picture = token_strip(NASTY, torch.randn(len(NASTY)), "caption")
    assert picture.dtype == np.uint8
    for token in NASTY:
        drawn = colours(token_strip([token], torch.ones(1)))
        assert any(red > blue + 80 for red, _, blue in drawn), repr(token)


def test_invisible_characters_become_visible():
    assert [visible(token) for token in ("\t", "  ", "a\x00b", "ok")] == ["⇥", "␣␣", "a�b", "ok"]


def test_tensorboard_shows_the_table_as_it_is():
    values = torch.randn(len(NASTY))
    html = markdown_to_safe_html(token_table(NASTY, values))
    rows = re.findall(r"<tr>\s*<td.*?>(.*?)</td>\s*<td.*?>(.*?)</td>\s*<td.*?>(.*?)</td>", html)
    assert len(rows) == len(NASTY)
    from html import unescape

    assert [unescape(token) for _, token, _ in rows] == [visible(token) for token in NASTY]
    shown = torch.tensor([float(value) for _, _, value in rows])
    torch.testing.assert_close(shown, values, rtol=1e-5, atol=1e-6)
