import re

import numpy as np
import pytest
import torch

from captum_transformer.visualization import html_page, patch_ties, word_ties, word_ties_html
from captum_transformer.visualization.ties import AGAINST, FOR

RELEVANCE = torch.tensor([[0.0, 2.0, -1.0], [0.5, 0.0, 0.0]])
ONE, OTHER = ["very", "good"], ["a", "fine", "film"]


def ties_of(figure):
    """The colour of each line, by the places of its ends."""
    collection = figure.axes[0].collections[0]
    ends = [np.array(segment)[[0, -1], 1] for segment in collection.get_segments()]
    return list(zip(ends, collection.get_colors(), strict=True))


def test_ties_are_as_opaque_as_pairs_are_strong_and_the_strongest_lie_above():
    ties = ties_of(word_ties(RELEVANCE, ONE, OTHER))
    # The shorter text stands half a row lower.
    expected = [((1.5, 0), (*FOR, 0.25)), ((0.5, 2), (*AGAINST, 0.5)), ((0.5, 1), (*FOR, 1.0))]
    assert len(ties) == 3
    for (ends, color), (places, expected_color) in zip(ties, expected, strict=True):
        np.testing.assert_allclose(ends, places)
        np.testing.assert_allclose(color, expected_color)


def test_all_words_are_there():
    figure = word_ties(RELEVANCE, ["$x", "\n"], OTHER, labels=("query", "document"))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["query", "$x", "⏎", "document", *OTHER]


@pytest.mark.parametrize("draw", [word_ties, word_ties_html])
def test_the_number_of_drawn_pairs_is_noted(draw):
    drawn = draw(RELEVANCE, ONE, OTHER, most=2)
    note = drawn if isinstance(drawn, str) else drawn.axes[0].get_xlabel()
    assert "the strongest 2 of 3 pairs" in note


def test_special_tokens_do_not_set_the_scale():
    off = [False, False], [False, True, False]
    figure = word_ties(RELEVANCE, ONE, OTHER, off_scale=off)
    assert [round(float(color[3]), 2) for _, color in ties_of(figure)] == [0.5, 1.0, 1.0]
    assert figure.axes[0].get_xlabel() == "grey: not on the scale"
    html = word_ties_html(RELEVANCE, ONE, OTHER, off_scale=off)
    assert html.count('class="off-scale"') == 1
    assert re.findall(r'stroke-opacity="([\d.]+)"', html) == ["0.500", "1.000", "1.000"]


def test_a_scale_makes_pairs_of_texts_comparable():
    figure = word_ties(RELEVANCE, ONE, OTHER, scale=4.0)
    assert max(float(color[3]) for _, color in ties_of(figure)) == 0.5


def test_only_what_is_for_the_similarity():
    html = word_ties_html(RELEVANCE, ONE, OTHER, sign="positive")
    assert html.count("<path") == 2
    assert "against" not in html.split("</style>")[1]


def test_html_says_each_value_and_escapes_what_texts_say():
    nasty = ['"><script>alert(1)</script>', "</style>"]
    html = html_page("a", [word_ties_html(RELEVANCE, nasty, OTHER, "<b>", labels=("<i>", "&"))])
    assert "<title>&lt;/style&gt; – a: 0.5</title>" in html
    assert not re.search(r"<script|<b>|<i>|https?:|url\(", html)


def test_lines_join_the_patches_of_a_pair():
    relevance = torch.zeros(2, 2, 1, 3)
    relevance[1, 0, 0, 2], relevance[0, 1, 0, 0] = 1.0, -0.5
    figure = patch_ties(torch.rand(3, 8, 8), torch.rand(3, 4, 12), relevance)
    axes = figure.axes[0]
    against, most = (np.array(segment) for segment in axes.collections[0].get_segments())
    # Images are 320 pixels high, here 320 and 960 wide, with 48 between them.
    np.testing.assert_allclose(most, [(80, 240), (368 + 800, 160)])
    np.testing.assert_allclose(against, [(240, 80), (368 + 160, 160)])
    assert [image.get_extent() for image in axes.images] == [[0, 320, 320, 0], [368, 1328, 320, 0]]


@pytest.mark.parametrize("draw", [word_ties, word_ties_html])
def test_relevance_of_other_texts_is_refused(draw):
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(3, 2\)"):
        draw(RELEVANCE.T, ONE, OTHER)
    with pytest.raises(ValueError, match="NaN or infinite"):
        draw(RELEVANCE / 0, ONE, OTHER)
    with pytest.raises(ValueError, match="positive number of ties"):
        draw(RELEVANCE, ONE, OTHER, most=0)


def test_patches_without_their_grid_are_refused():
    with pytest.raises(ValueError, match=r"other rows, other columns\), got \(4, 9\)"):
        patch_ties(torch.rand(3, 8, 8), torch.rand(3, 8, 8), torch.rand(4, 9))


def test_no_relevance_at_all():
    figure = word_ties(torch.zeros(2, 3), ONE, OTHER)
    assert not figure.axes[0].collections[0].get_segments()
    assert "all zero" in word_ties_html(torch.zeros(2, 3), ONE, OTHER)
