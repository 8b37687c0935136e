"""An explained answer is drawn over the picture that was given."""

import pytest
import torch
from PIL import Image

from captum_transformer.chat import ExplainedAnswer
from captum_transformer.errors import InvalidInputError


def explained() -> ExplainedAnswer:
    of_image = torch.zeros(2, 4, 6)
    of_image[0, 1, 4] = 1.0
    of_image[1, 3, 0] = -2.0
    return ExplainedAnswer(
        ["a", "cat"],
        ["a", "cat"],
        ["what", "?"],
        torch.tensor([[1.0, 0.0], [0.0, 3.0]]),
        torch.tensor([[0.0, 0.0], [0.5, 0.0]]),
        [of_image],
        [],
        [],
        {},
        [Image.new("RGB", (30, 20), (128, 128, 128))],
        [],
        [],
        torch.eye(2),
    )


def test_the_picture_shows_the_place_in_the_picture_that_was_given() -> None:
    for word, row, column, channel in ((0, 1, 4, 0), ("cat", 3, 0, 2), (-1, 3, 0, 2)):
        shown = explained().picture(word, height=80, sign="signed").astype(int)
        # A margin of 10 and two lines of 19 above; cells of 20 pixels.
        cell = shown[48 + 20 * row + 10, 10 + 20 * column + 10]
        assert cell[channel] > cell.sum() - cell[channel]
        elsewhere = shown[48 + 20 * 2 + 10, 10 + 20 * 2 + 10]
        assert elsewhere.max() - elsewhere.min() < 3


def test_words_that_are_not_in_the_answer_exactly_once() -> None:
    answer = explained()
    with pytest.raises(InvalidInputError, match="'dog' is 0 times among what is explained"):
        answer.picture("dog")
    with pytest.raises(
        InvalidInputError, match="2 words or spans of the answer are explained, got number 2"
    ):
        answer.picture(2)
    assert answer.picture().shape == answer.picture(0).shape
