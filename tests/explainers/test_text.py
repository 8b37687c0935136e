"""Explained texts: the words that a reader sees have what the method gives to their tokens."""

import copy
import random
import re

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import (
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from captum_transformer import AttnLRP, BiLRP, Contrast, GenericAttentionRelevance
from captum_transformer.errors import (
    AmbiguousOutputError,
    ExplanationError,
    InvalidInputError,
    InvalidTargetError,
)
from captum_transformer.explainers import TextExplainer

TEXT = "Anna Berg and Tom live in Paris ."
QUESTION = "who lives in Paris ?"


def by_hand(model, tokenizer, read, *texts, method=AttnLRP):
    """The relevance of tokens by the method itself, called as in Captum."""
    coded = tokenizer(*texts, return_tensors="pt")
    ids = coded.pop("input_ids")

    def forward(input_ids, **context):
        return read(model(input_ids=input_ids, **context))

    return method(forward).attribute(ids, additional_forward_kwargs=dict(coded))[0]


def output_of(model, tokenizer, *texts):
    mode = model.training
    with torch.no_grad():
        output = model.eval()(**tokenizer(*texts, return_tensors="pt"))
    model.train(mode)
    return output


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


def test_rather_than_and_a_method_of_ones_own(readers, tokenizer):
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


def test_the_predicted_answer_is_the_best_span_of_the_text(readers, tokenizer):
    model = readers["answer"]
    output = output_of(model, tokenizer, QUESTION, TEXT)
    coded = tokenizer(QUESTION, TEXT)
    inside = [n for n, part in enumerate(coded.sequence_ids(0)) if part == 1]
    spans = [(s, e) for s in inside for e in inside if s <= e]
    first, last = max(spans, key=lambda span: float(
        output.start_logits[0, span[0]] + output.end_logits[0, span[1]]
    ))  # fmt: skip
    explained = TextExplainer(model, tokenizer)((QUESTION, TEXT))
    assert explained.predicted

    def read(o):
        return o.start_logits[:, first] + o.end_logits[:, last]

    assert torch.equal(explained.of_tokens, by_hand(model, tokenizer, read, QUESTION, TEXT))
    start = coded.token_to_chars(first).start
    assert explained.label == TEXT[start : coded.token_to_chars(last).end]


def test_an_answer_as_it_stands_in_the_text(readers, tokenizer):
    model = readers["answer"]
    explained = TextExplainer(model, tokenizer)((QUESTION, TEXT), target="Anna Berg")

    # Behind [CLS], six tokens of the question and [SEP].
    def read(o):
        return o.start_logits[:, 8] + o.end_logits[:, 11]

    assert torch.equal(explained.of_tokens, by_hand(model, tokenizer, read, QUESTION, TEXT))
    assert explained.label == "Anna Berg"
    with pytest.raises(InvalidTargetError, match="exactly once, but occurs 2 times"):
        TextExplainer(model, tokenizer)((QUESTION, "Tom and Tom"), target="Tom")


def test_the_classes_of_words_are_read_where_each_begins(readers, tokenizer):
    model = readers["words"]
    explainer = TextExplainer(model, tokenizer)
    explained = explainer(TEXT, target=("Anna Berg", "B-PER"))

    def read(o):
        return o.logits[:, 1, 1] + o.logits[:, 3, 1]

    by_method = by_hand(model, tokenizer, read, TEXT)
    torch.testing.assert_close(explained.of_tokens, by_method, rtol=1e-5, atol=1e-7)
    assert explained.label == "Anna Berg: B-PER"
    scores = output_of(model, tokenizer, TEXT).logits[0, 6]
    predicted = explainer(TEXT, target="Tom")
    assert predicted.target == int(scores.argmax())
    assert predicted.probability == pytest.approx(float(scores.softmax(0).max()), rel=1e-6)
    with pytest.raises(InvalidTargetError, match="Choose one with"):
        explainer(TEXT)


@pytest.mark.parametrize(("task", "text", "place"), [
    ("next word", "Tom live in", 4),
    ("masked word", "Tom live [MASK] Paris", 4),
])  # fmt: skip
def test_the_next_and_the_masked_word(readers, tokenizer, task, text, place):
    model = readers[task]
    explainer = TextExplainer(model, tokenizer)
    number = tokenizer.convert_tokens_to_ids("there")
    explained = explainer(text, target="there")

    def read(o):
        return o.logits[:, place, number]

    assert torch.equal(explained.of_tokens, by_hand(model, tokenizer, read, text))
    assert (explained.label, explained.target) == ("there", number)
    scores = output_of(model, tokenizer, text).logits[0, place]
    assert explainer(text).target == int(scores.argmax())
    with pytest.raises(InvalidTargetError, match=r"'Paris' is 2 tokens.*ChatExplainer"):
        explainer(text, target="Paris")


def test_what_makes_two_texts_similar(readers, tokenizer):
    bert = readers["class"].bert

    def embedding(input_ids, attention_mask):
        hidden = bert(input_ids, attention_mask).last_hidden_state
        return (hidden * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)

    texts = TEXT, QUESTION
    explainer = TextExplainer(embedding, tokenizer, task="similarity")
    pair = explainer(texts)
    coded = [tokenizer(text, return_tensors="pt") for text in texts]
    bert.eval()
    with torch.no_grad():
        one, other = (embedding(**each) for each in coded)
    bert.train()
    assert pair.score == pytest.approx(float(torch.cosine_similarity(one, other)), rel=1e-5)
    ids = [{"input_ids": each.pop("input_ids")} for each in coded]
    by_hand = BiLRP(embedding, normalize=True).attribute(
        *ids, additional_forward_kwargs=dict(coded[0]), other_forward_kwargs=dict(coded[1])
    )
    assert torch.equal(pair.of_tokens, by_hand[0])
    # The words of both, each with the sum of its tokens' pairs: "Anna" and "Paris" are two each.
    assert pair.words == (["[CLS]", *TEXT.split(), "[SEP]"], ["[CLS]", *QUESTION.split(), "[SEP]"])
    torch.testing.assert_close(pair.relevance[1, 4], by_hand[0, 1:3, 4:6].sum())
    torch.testing.assert_close(pair.relevance.sum(), by_hand.sum())
    assert all(word not in ("[CLS]", "[SEP]") for word, _, _ in pair.top(100))
    assert len(pair.top(100)) == len(TEXT.split()) * len(QUESTION.split())
    first = pair.top(1)[0]
    assert str(pair).splitlines()[2].endswith(f" {first[0]} – {first[1]}")
    assert "Anna" in pair.to_page()
    assert pair.picture().ndim == 3
    assert list(pair.to_frame().columns) == ["word", "other", "relevance"]
    several = explainer([texts, texts], unit="token")
    assert several[1].words == several[1].tokens

    with pytest.raises(InvalidInputError, match="needs a tuple of two texts"):
        explainer(TEXT)
    with pytest.raises(InvalidTargetError, match="one similarity"):
        explainer(texts, target=1)
    with pytest.raises(InvalidInputError, match="must make a `BiLRP`"):
        TextExplainer(embedding, tokenizer, AttnLRP, task="similarity")(texts)
    with pytest.raises(AmbiguousOutputError, match="one embedding for each"):
        TextExplainer(bert, tokenizer, task="similarity")(texts)


def test_several_labels_have_probabilities_of_their_own(readers, tokenizer):
    model = readers["class"]
    explainer = TextExplainer(model, tokenizer, activation="sigmoid")
    score = float(output_of(model, tokenizer, TEXT).logits[0, 1])
    found = explainer(TEXT, target=1).probability
    assert found == pytest.approx(float(torch.tensor(score).sigmoid()), rel=1e-6)


def test_a_model_of_ones_own_is_a_classifier(readers, tokenizer):
    bert = readers["class"]

    def own(input_ids, **masks):
        return bert(input_ids=input_ids, **masks).logits

    explained = TextExplainer(own, tokenizer, names=["none", "one", "two"])(TEXT, target="two")
    assert explained.probability is None
    same = TextExplainer(bert, tokenizer)(TEXT, target=2)
    assert torch.equal(explained.relevance, same.relevance)


def test_the_next_word_follows_the_text_and_not_what_a_tokenizer_puts_behind_it(readers, tokenizer):
    # The tokenizer here ends each text with [SEP].
    scores = output_of(readers["next word"], tokenizer, "Tom live in").logits[0]
    explained = TextExplainer(readers["next word"], tokenizer)("Tom live in")
    assert explained.tokens[-2:] == ["in", "[SEP]"]
    assert explained.target == int(scores[-2].argmax()) != int(scores[-1].argmax())


def test_an_answer_needs_a_text_that_has_it(readers, tokenizer):
    with pytest.raises(InvalidInputError, match="pass a question and the text"):
        TextExplainer(readers["answer"], tokenizer)(QUESTION)


def test_names_of_other_classes_are_none_of_the_models(readers, tokenizer):
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


def test_what_is_written_of_a_class_names_it(readers, tokenizer):
    stars = TextExplainer(readers["class"], tokenizer, names=["1", "2", "crane, crane"])
    with pytest.raises(InvalidTargetError, match=re.escape("1 (0); 2 (1). Give one as it is")):
        stars(TEXT, target="1")
    assert [stars(TEXT, target=label).target for label in ("1 (0)", "2 (1)")] == [0, 1]


def test_words_of_tokenizers_that_cut_whole_texts(readers):
    """As Llama's: a space is a part of a token, and nothing says which word a token is of."""
    letters = dict.fromkeys("▁AnaBergdTom<unk>")
    vocabulary = {piece: n for n, piece in enumerate(["<unk>", *letters, "▁A", "▁B"])}
    whole = Tokenizer(models.BPE(vocabulary, [("▁", "A"), ("▁", "B")], unk_token="<unk>"))
    whole.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="<unk>", model_max_length=40
    )
    assert set(tokenizer("Tom and Anna Berg").word_ids()) == {0}
    model = readers["words"]
    explained = TextExplainer(model, tokenizer)("Tom and Anna Berg", target=("Anna Berg", 1))
    scores = output_of(model, tokenizer, "Tom and Anna Berg").logits[0, :, 1]
    first = [n for n, token in enumerate(explained.tokens) if token in ("▁A", "▁B")]
    assert len(first) == 2
    assert explained.score == pytest.approx(float(scores[first].sum()), rel=1e-5)


def test_a_score_that_is_no_number_is_not_explained(readers, tokenizer):
    model = copy.deepcopy(readers["class"])
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(ExplanationError, match="The model's score is nan"):
        TextExplainer(model, tokenizer)(TEXT)


def test_positions_that_are_counted_from_padding_on(tokenizer):
    config = RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=len(tokenizer), max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    explainer = TextExplainer(RobertaForSequenceClassification(config), tokenizer)
    assert len(explainer(" ".join(["live"] * 8)).tokens) == 10
    with pytest.raises(InvalidInputError, match="has 11 tokens, and the model takes 10"):
        explainer(" ".join(["live"] * 9))


def test_a_tokenizer_without_a_vocabulary_is_refused(readers):
    blank = BertTokenizerFast()  # what Transformers makes of a folder without a tokenizer's files
    with pytest.raises(InvalidInputError, match=r"has only special tokens.*save_pretrained"):
        TextExplainer(readers["class"], blank)


def test_nothing_of_the_model_changes(readers, tokenizer):
    model = readers["class"]
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state()
    TextExplainer(model, tokenizer)(TEXT)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("text", "error"), [
    ("  ", "Expected a non-empty text"),
    (("a", "b", "c"), "a tuple of two"),
    (3, "Expected a non-empty text"),
    ("Tom " * 40, "has 82 tokens, and the model takes 40"),
])  # fmt: skip
def test_texts_that_are_none(readers, tokenizer, text, error):
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
def test_classes_that_do_not_exist(readers, tokenizer, target, error):
    with pytest.raises(InvalidTargetError, match=error):
        TextExplainer(readers["class"], tokenizer)(TEXT, target=target)


def test_what_can_not_be_asked(readers, tokenizer):
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


def test_what_is_written(readers, tokenizer, capsys):
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
    frame = TextExplainer(readers["class"], tokenizer)(TEXT, target=0).to_frame()
    assert list(frame.columns) == ["word", "relevance", "special"]
    assert len(frame) == 10


def test_what_a_tokenizer_makes_is_taken_as_it_is(readers, tokenizer):
    model = readers["class"]
    coded = tokenizer([TEXT, "Tom ."], padding=True, return_tensors="pt")
    found = AttnLRP(model).attribute(coded, target=1)
    assert list(found) == ["input_ids"]
    masks = {name: value for name, value in coded.items() if name != "input_ids"}
    alone = AttnLRP(model).attribute(coded["input_ids"], 1, additional_forward_kwargs=masks)
    assert torch.equal(found["input_ids"], alone)
    with pytest.raises(InvalidInputError, match=r"\['attention_mask'\] are among both"):
        AttnLRP(model).attribute(coded, target=1, additional_forward_kwargs=masks)
