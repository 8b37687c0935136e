"""Texts, classes, names and tasks that don't fit the model are refused."""

import copy
import re

import pytest
import torch
from transformers import BertTokenizerFast, RobertaConfig, RobertaForSequenceClassification

from captum_transformer.errors import (
    AmbiguousOutputError,
    ExplanationError,
    InvalidInputError,
    InvalidTargetError,
)
from captum_transformer.explainers import TextExplainer
from tests.explainers.by_hand import QUESTION, TEXT


def test_an_answer_needs_a_text_that_has_it(readers, tokenizer):
    with pytest.raises(InvalidInputError, match="pass a question and the text"):
        TextExplainer(readers["answer"], tokenizer)(QUESTION)


def test_names_must_fit_the_number_of_scores(readers, tokenizer):
    model = copy.deepcopy(readers["class"])
    model.classifier = torch.nn.Linear(16, 2)  # the configuration still has three names
    assert TextExplainer(model, tokenizer)(TEXT, target=0).label == "class 0"
    with pytest.raises(InvalidTargetError, match="No names of the model's classes are known"):
        TextExplainer(model, tokenizer)(TEXT, target="B-PER")
    assert TextExplainer(model, tokenizer, names=["a", "b"])(TEXT, target="b").target == 1
    assert TextExplainer(model, tokenizer, names={1: "b"})(TEXT, target=0).label == "class 0"
    for names in (["a", "b", "c"], ["a"], {2: "c"}):
        with pytest.raises(InvalidInputError, match=r"gives 2 scores, and `names` has"):
            TextExplainer(model, tokenizer, names=names)(TEXT)


def test_a_printed_label_chooses_its_class(readers, tokenizer):
    stars = TextExplainer(readers["class"], tokenizer, names=["1", "2", "crane, crane"])
    with pytest.raises(InvalidTargetError, match=re.escape("1 (0); 2 (1). Give one as it is")):
        stars(TEXT, target="1")
    assert [stars(TEXT, target=label).target for label in ("1 (0)", "2 (1)")] == [0, 1]


def test_a_score_that_is_nan_is_refused(readers, tokenizer):
    model = copy.deepcopy(readers["class"])
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(ExplanationError, match="The model's score is nan"):
        TextExplainer(model, tokenizer)(TEXT)


def test_positions_counted_from_the_padding_index(tokenizer):
    config = RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=len(tokenizer), max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    explainer = TextExplainer(RobertaForSequenceClassification(config), tokenizer)
    assert len(explainer(" ".join(["live"] * 8)).tokens) == 10
    with pytest.raises(InvalidInputError, match="has 11 tokens, and the model takes 10"):
        explainer(" ".join(["live"] * 9))


def test_a_tokenizer_without_a_vocabulary_is_refused(readers):
    blank = BertTokenizerFast()  # as loaded from a folder without the files of a tokenizer
    with pytest.raises(InvalidInputError, match=r"has only special tokens.*save_pretrained"):
        TextExplainer(readers["class"], blank)


@pytest.mark.parametrize(("text", "error"), [
    ("  ", "Expected a non-empty text"),
    (("a", "b", "c"), "a tuple of two"),
    (3, "Expected a non-empty text"),
    ("Tom " * 40, "has 82 tokens, and the model takes 40"),
])  # fmt: skip
def test_bad_texts_are_refused(readers, tokenizer, text, error):
    with pytest.raises(InvalidInputError, match=error):
        TextExplainer(readers["class"], tokenizer)(text, target=0)


@pytest.mark.parametrize(("target", "error"), [
    (3, r"There is no class 3: the model has 3, from 0 to 2"),
    (-1, r"There is no class -1"),
    ("B-PRE", r"no class named 'B-PRE'\. Did you mean b-per \(1\)"),
    ("per", r"may be several classes: B-PER \(1\); I-PER \(2\)"),
    (True, "number or the name of a class"),
    (0.5, "number or the name of a class"),
])  # fmt: skip
def test_missing_classes_are_refused(readers, tokenizer, target, error):
    with pytest.raises(InvalidTargetError, match=error):
        TextExplainer(readers["class"], tokenizer)(TEXT, target=target)


def test_tasks_that_do_not_fit_the_model_are_refused(readers, tokenizer):
    with pytest.raises(InvalidInputError, match="load a fast tokenizer"):
        TextExplainer(readers["class"], object())
    with pytest.raises(InvalidInputError, match="`task` must be one of"):
        TextExplainer(readers["class"], tokenizer, task="summary")
    with pytest.raises(AmbiguousOutputError, match=r"\(1, tokens, classes\), got \(1, 3\)"):
        TextExplainer(readers["class"], tokenizer, task="words")(TEXT, target="Tom")
    with pytest.raises(AmbiguousOutputError, match="one score for each class"):
        TextExplainer(readers["words"], tokenizer, task="class")(TEXT, target=0)
    with pytest.raises(InvalidInputError, match=r"must have one \[MASK\], it has 0"):
        TextExplainer(readers["masked word"], tokenizer)(TEXT)
