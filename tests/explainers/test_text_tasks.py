"""Answers, classes of words, next and masked words, and similar texts are explained."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from captum_transformer import AttnLRP, BiLRP
from captum_transformer.errors import AmbiguousOutputError, InvalidInputError, InvalidTargetError
from captum_transformer.explainers import TextExplainer
from tests.explainers.by_hand import QUESTION, TEXT, by_hand, output_of


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


def test_an_answer_given_by_its_text(readers, tokenizer):
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


def test_two_similar_texts(readers, tokenizer):
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


def test_the_next_word_follows_the_text_without_closing_tokens(readers, tokenizer):
    # The tokenizer here ends each text with [SEP].
    scores = output_of(readers["next word"], tokenizer, "Tom live in").logits[0]
    explained = TextExplainer(readers["next word"], tokenizer)("Tom live in")
    assert explained.tokens[-2:] == ["in", "[SEP]"]
    assert explained.target == int(scores[-2].argmax()) != int(scores[-1].argmax())


def test_words_of_tokenizers_without_word_boundaries(readers):
    """As with Llama: spaces are parts of tokens, and tokens are not assigned to words."""
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
