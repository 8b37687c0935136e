"""The words of a classified text have the relevance that the method gives to their tokens."""

import pytest
import torch

from captum_transformer import AttnLRP, Contrast, GenericAttentionRelevance
from captum_transformer.errors import InvalidInputError, InvalidTargetError
from captum_transformer.explainers import TextExplainer
from tests.attr.snapshots import unchanged
from tests.explainers.by_hand import QUESTION, TEXT, by_hand, output_of


def test_a_class_by_name_by_number_and_as_predicted(readers, tokenizer):
    model = readers["class"]
    explainer = TextExplainer(model, tokenizer)
    scores = output_of(model, tokenizer, TEXT).logits[0]
    named = explainer(TEXT, target="b-per")
    torch.testing.assert_close(
        named.of_tokens, by_hand(model, tokenizer, lambda o: o.logits[:, 1], TEXT), rtol=0, atol=0
    )
    assert (named.label, named.target, named.method) == ("B-PER (1)", 1, "AttnLRP")
    assert not named.predicted
    assert named.score == pytest.approx(float(scores[1]), rel=1e-6)
    assert named.probability == pytest.approx(float(scores.softmax(0)[1]), rel=1e-6)
    predicted = explainer(TEXT)
    assert (predicted.target, predicted.predicted) == (int(scores.argmax()), True)
    assert torch.equal(explainer(TEXT, target=predicted.target).relevance, predicted.relevance)


def test_words_add_up_their_tokens_and_special_ones_are_marked(readers, tokenizer):
    explained = TextExplainer(readers["class"], tokenizer)(TEXT, target=0)
    assert explained.tokens[:4] == ["[CLS]", "An", "##na", "Be"]
    assert explained.words == ["[CLS]", *TEXT.split(), "[SEP]"]
    assert explained.special == [True, *[False] * 8, True]
    first = explained.of_tokens[1:3].sum()
    torch.testing.assert_close(explained.relevance[1], first, rtol=1e-6, atol=0)
    torch.testing.assert_close(explained.relevance.sum(), explained.of_tokens.sum())
    of_tokens = TextExplainer(readers["class"], tokenizer)(TEXT, target=0, unit="token")
    assert of_tokens.words == explained.tokens
    sizes = [abs(value) for _, value in explained.top(3)]
    others = [abs(v) for w, v in zip(explained.words, explained.relevance.tolist(), strict=True)]
    assert sizes == sorted(others[1:-1], reverse=True)[:3]


def test_a_pair_and_several_texts(readers, tokenizer):
    explainer = TextExplainer(readers["class"], tokenizer)
    pair = explainer((QUESTION, TEXT), target=2)
    assert pair.words == ["[CLS]", *QUESTION.split(), "[SEP]", *TEXT.split(), "[SEP]"]
    by_method = by_hand(readers["class"], tokenizer, lambda o: o.logits[:, 2], QUESTION, TEXT)
    assert torch.equal(pair.of_tokens, by_method)
    several = explainer([(QUESTION, TEXT), TEXT], target=[2, "O"])
    assert torch.equal(several[0].relevance, pair.relevance)
    assert torch.equal(several[1].relevance, explainer(TEXT, target=0).relevance)
    with pytest.raises(InvalidInputError, match="2 texts and 3 targets"):
        explainer([TEXT, TEXT], target=[0, 1, 2])


def test_rather_than_and_a_given_method(readers, tokenizer):
    model = readers["class"]
    explainer = TextExplainer(model, tokenizer, GenericAttentionRelevance)
    explained = explainer(TEXT, target=0, rather_than=2)
    coded = tokenizer(TEXT, return_tensors="pt")
    ids = coded.pop("input_ids")
    by_contrast = GenericAttentionRelevance(model).attribute(
        ids, Contrast(0, rather_than=2), additional_forward_kwargs=dict(coded)
    )
    torch.testing.assert_close(explained.of_tokens, by_contrast[0], rtol=1e-6, atol=1e-9)
    assert explained.label == "O (0) rather than I-PER (2)"
    assert explained.probability is None
    with pytest.raises(InvalidTargetError, match="compared with itself"):
        explainer(TEXT, target=0, rather_than="O")


def test_with_several_labels_each_has_its_own_probability(readers, tokenizer):
    model = readers["class"]
    explainer = TextExplainer(model, tokenizer, activation="sigmoid")
    score = float(output_of(model, tokenizer, TEXT).logits[0, 1])
    found = explainer(TEXT, target=1).probability
    assert found == pytest.approx(float(torch.tensor(score).sigmoid()), rel=1e-6)


def test_a_function_is_a_classifier(readers, tokenizer):
    bert = readers["class"]

    def own(input_ids, **masks):
        return bert(input_ids=input_ids, **masks).logits

    explained = TextExplainer(own, tokenizer, names=["none", "one", "two"])(TEXT, target="two")
    assert explained.probability is None
    same = TextExplainer(bert, tokenizer)(TEXT, target=2)
    assert torch.equal(explained.relevance, same.relevance)


def test_nothing_changes(readers, tokenizer):
    model = readers["class"]
    with unchanged(model):
        TextExplainer(model, tokenizer)(TEXT)


def test_an_explained_text_is_printed_and_drawn(readers, tokenizer, capsys):
    explained = TextExplainer(readers["class"], tokenizer)("Tom and <b>", target=0)
    explained.show()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "O (0)"
    assert [line.split()[-1] for line in printed[2:]] == explained.words
    assert "\x1b" not in "".join(printed)
    page = explained.to_page()
    assert "&lt;" in page
    assert "<b>" not in page.replace("<body>", "")
    assert explained._repr_html_() == explained.to_html()
    assert explained.picture().shape[2] == 3


def test_a_data_frame(readers, tokenizer):
    pytest.importorskip("pandas")
    explained = TextExplainer(readers["class"], tokenizer)(TEXT, target=0)
    frame = explained.to_frame()
    assert list(frame.columns) == ["word", "relevance", "special"]
    assert frame["word"].tolist() == explained.words
    assert frame["relevance"].tolist() == explained.relevance.tolist()
    assert frame["word"][frame["special"]].tolist() == ["[CLS]", "[SEP]"]


def test_methods_take_the_output_of_a_tokenizer(readers, tokenizer):
    model = readers["class"]
    coded = tokenizer([TEXT, "Tom ."], padding=True, return_tensors="pt")
    found = AttnLRP(model).attribute(coded, target=1)
    assert list(found) == ["input_ids"]
    masks = {name: value for name, value in coded.items() if name != "input_ids"}
    alone = AttnLRP(model).attribute(coded["input_ids"], 1, additional_forward_kwargs=masks)
    assert torch.equal(found["input_ids"], alone)
    with pytest.raises(InvalidInputError, match=r"\['attention_mask'\] are among both"):
        AttnLRP(model).attribute(coded, target=1, additional_forward_kwargs=masks)
