"""The look of tokens that are left out of the colour scale, and of the others."""

import re

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import BertTokenizer

from captum_transformer.visualization import (
    image_and_text,
    log_token_attributions,
    to_array,
    token_ansi,
    token_html,
    token_matrix,
    token_strip,
)
from captum_transformer.visualization.token_scale import scale_tokens, special_ids

TOKENS = ["[CLS]", "fine", "film", "[SEP]"]
SPECIAL = [True, False, False, True]
# As the papers' row has it: the token that the score is read from, and nothing else.
SWAMPED = torch.tensor([1.0, 2e-6, 1e-6, 0.0])


def coloured(picture, warmth=80):
    """How many pixels are clearly red."""
    pixels = np.asarray(picture, int)
    return int((pixels[..., 0] > pixels[..., 2] + warmth).sum())


@pytest.mark.parametrize("mask", [SPECIAL, torch.tensor(SPECIAL)])
def test_words_have_the_colours_that_they_have_without_special_tokens(mask):
    found = scale_tokens(TOKENS, SWAMPED, off_scale=mask)
    alone = scale_tokens(TOKENS[1:3], SWAMPED[1:3])
    torch.testing.assert_close(found.scaled.values[1:3], alone.scaled.values)
    assert found.scaled.scale == alone.scaled.scale == pytest.approx(2e-6)


def test_values_beyond_the_scale_are_clipped_and_labelled():
    found = scale_tokens(TOKENS, SWAMPED, off_scale=SPECIAL)
    assert found.labels == ["[CLS] (1)", "fine", "film", "[SEP]"]
    assert found.scaled.values.tolist() == [1, 1, 0.5, 0]
    assert found.values == pytest.approx(SWAMPED.tolist())


def test_a_special_token_against_the_class_does_not_make_the_scale_signed():
    found = scale_tokens(TOKENS, torch.tensor([-1.0, 0.5, 0.1, 0.2]), off_scale=SPECIAL)
    assert not found.scaled.signed
    assert found.scaled.values[0] == -1  # it keeps its own colour
    signed = scale_tokens(TOKENS, torch.tensor([3.0, 0.5, -1.0, 0.2]), off_scale=SPECIAL)
    assert signed.scaled.signed
    assert signed.scaled.values.tolist() == pytest.approx([1, 0.5, -1, 0.2])


@pytest.mark.parametrize("sign", ["auto", "signed", "positive", "absolute"])
def test_without_such_tokens_nothing_changes(sign):
    values = torch.randn(4)
    plain = token_strip(TOKENS, values, sign=sign)
    np.testing.assert_array_equal(
        token_strip(TOKENS, values, sign=sign, off_scale=[False] * 4), plain
    )


def test_a_text_of_special_tokens_alone_is_drawn():
    found = scale_tokens(["<s>", "</s>"], torch.tensor([2.0, 0.0]), off_scale=[True, True])
    assert found.labels == ["<s> (2)", "</s>"]
    assert token_strip(["<s>"], torch.ones(1), off_scale=[True]).dtype == np.uint8


def test_a_fixed_scale_stays():
    found = scale_tokens(TOKENS, SWAMPED, off_scale=SPECIAL, scale=0.5)
    assert found.scaled.scale == 0.5
    assert found.labels[0] == "[CLS] (1)"


def test_a_strip_shows_words_and_frames_special_tokens():
    before = token_strip(TOKENS, SWAMPED)
    after = token_strip(TOKENS, SWAMPED, off_scale=SPECIAL)
    word = token_strip(["fine"], torch.ones(1))
    # The word is red as if it stood alone; of [CLS] and in the legend there are but lines of red.
    assert coloured(after) > coloured(word) > 0
    assert coloured(before) < coloured(after)


def test_a_page_says_what_is_not_on_the_scale():
    html = token_html(TOKENS, SWAMPED, off_scale=SPECIAL)
    kinds = re.findall(r'<span class="([\w -]+)" style="--share:([\d.]+)" title="([^"]+)">', html)
    assert kinds[:4] == [
        ("for off-scale", "1.000", "1"),
        ("for", "1.000", "2e−06"),
        ("for", "0.500", "1e−06"),
        ("for off-scale", "0.000", "0"),
    ]
    assert "not on the scale" in html
    assert "not on the scale" not in token_html(TOKENS, SWAMPED)


def test_a_terminal_has_them_dim():
    boxes = token_ansi(TOKENS, SWAMPED, off_scale=SPECIAL).split("\x1b[0m")
    assert boxes[0] == "\x1b[2m[CLS] (1)"
    assert boxes[1].strip() == token_ansi(["fine"], torch.ones(1)).removesuffix("\x1b[0m")


def test_columns_of_a_matrix_are_left_out():
    values = torch.tensor([[1.0, 2e-6, 1e-6], [1.0, 0.0, 2e-6]])
    columns = [True, False, False]
    figure = token_matrix(values, ["a", "b"], ["<s>", "c", "d"], off_scale=columns)
    (shown,) = figure.axes[0].images
    np.testing.assert_allclose(shown.get_array(), [[1, 1, 0.5], [1, 0, 1]], rtol=1e-6)
    assert [patch.get_x() for patch in figure.axes[0].patches] == [-0.5]
    assert to_array(figure).dtype == np.uint8


def test_beside_an_image_and_in_tensorboard(tmp_path):
    image = torch.rand(3, 32, 32)
    plain = image_and_text(image, torch.zeros(32, 32), TOKENS, SWAMPED)
    off = image_and_text(image, torch.zeros(32, 32), TOKENS, SWAMPED, off_scale=SPECIAL)
    assert plain.shape == off.shape
    assert (plain != off).any()
    with SummaryWriter(tmp_path) as writer:
        texts = {"writer": writer, "tag": "a", "tokens": [TOKENS], "global_step": 0}
        log_token_attributions(attributions=SWAMPED[None], off_scale=[SPECIAL], **texts)
        with pytest.raises(ValueError, match="masks in off_scale"):
            log_token_attributions(attributions=SWAMPED[None], off_scale=[], **texts)


@pytest.mark.parametrize("mask", [[True], torch.ones(2, 4)])
def test_a_mask_that_does_not_fit_is_refused(mask):
    for draw in (token_strip, token_html, token_ansi):
        with pytest.raises(ValueError, match="each of the 4 tokens"):
            draw(TOKENS, SWAMPED, off_scale=mask)


def test_a_tokenizer_says_which_ids_are_special(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    # What stands for an unknown word is a word of the text.
    assert special_ids(tokenizer) == {0, 2, 3, 4}
    tokenizer.unk_token = "[SEP]"
    assert 3 in special_ids(tokenizer)
    assert special_ids(object()) == frozenset()
