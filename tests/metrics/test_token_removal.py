import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LxmertConfig,
    LxmertForQuestionAnswering,
)

from captum_transformer.errors import AmbiguousOutputError, InvalidInputError
from captum_transformer.metrics import token_removal
from tests.metrics.by_hand import classifier, in_order, up

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
IDS = torch.tensor(
    [
        [2, 11, 12, 13, 14, 15, 16, 17, 3],
        [2, 21, 22, 23, 24, 3, 0, 0, 0],
        [2, 11, 3, 0, 0, 0, 0, 0, 0],
        [2, 25, 26, 27, 28, 29, 12, 3, 0],
    ]
)
KEEP = IDS < 4


@pytest.fixture
def relevance():
    torch.manual_seed(1)
    return torch.randn(4, 9).round(decimals=1)


@pytest.fixture
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=3,
        initializer_range=0.5,
    )
    return BertForSequenceClassification(config).double().eval()


@pytest.fixture
def lxmert():
    torch.manual_seed(0)
    config = LxmertConfig(
        vocab_size=30,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        l_layers=1,
        x_layers=2,
        r_layers=1,
        visual_feat_dim=6,
        num_qa_labels=5,
        initializer_range=0.5,
    )
    return LxmertForQuestionAnswering(config).double().eval()


def test_tokens_are_taken_out_and_the_rest_stays_in_order():
    seen = []

    def model(ids, types):
        seen.extend(zip(ids.tolist(), types.tolist(), strict=True))
        return torch.zeros(len(ids), 2)

    relevance = torch.tensor([[9.0, 0.1, 0.4, 0.2, 0.3, 9.0]])
    ids, types = torch.tensor([[2, 11, 12, 13, 14, 3]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    keep = torch.tensor([[True, False, False, False, False, True]])
    token_removal(model, (ids, types), relevance, 0, keep=keep, fractions=(0, 0.25, 0.3, 1))
    assert sorted(seen, key=lambda pair: -len(pair[0])) == [
        ([2, 11, 12, 13, 14, 3], [0, 0, 0, 1, 1, 1]),
        ([2, 11, 13, 14, 3], [0, 0, 1, 1, 1]),
        ([2, 11, 13, 3], [0, 0, 1, 1]),
        ([2, 3], [0, 1]),
    ]


@pytest.mark.parametrize("order", ["positive", "negative"])
@pytest.mark.parametrize("perturbations_per_eval", [1, 4, 100])
def test_words_of_bert_as_by_hand(bert, relevance, order, perturbations_per_eval):
    types = (torch.arange(9) > 3).long().expand(4, 9)
    mask = (IDS != 0).long()
    target = torch.tensor([0, 1, 2, 0])
    curve = token_removal(
        bert,
        {"input_ids": IDS, "attention_mask": mask, "token_type_ids": types},
        relevance,
        target,
        keep=KEEP,
        order=order,
        perturbations_per_eval=perturbations_per_eval,
    )
    assert curve.fractions.tolist() == pytest.approx(FRACTIONS)
    for sample in range(4):
        places = in_order(relevance[sample], order, KEEP[sample])
        for step, fraction in enumerate(FRACTIONS):
            gone = places[: up(fraction, len(places))]
            stay = [place for place in range(9) if place not in gone]
            with torch.no_grad():
                logits = bert(
                    input_ids=IDS[sample, stay][None],
                    attention_mask=mask[sample, stay][None],
                    token_type_ids=types[sample, stay][None],
                ).logits[0]
            expected = logits.softmax(0)[target[sample]]
            torch.testing.assert_close(curve.scores[sample, step], expected, rtol=0, atol=1e-12)
            assert curve.predictions[sample, step] == logits.argmax()


def test_regions_of_lxmert_as_by_hand(lxmert):
    torch.manual_seed(3)
    features, boxes = torch.randn(2, 9, 6).double(), torch.rand(2, 9, 4).double()
    words, mask = IDS[:2], (IDS[:2] != 0).long()  # as many words as regions
    relevance = torch.randn(2, 9)
    further = {"input_ids": words, "attention_mask": mask}

    def answer(**inputs):
        return lxmert(**inputs).question_answering_score

    curve = token_removal(
        answer,
        {"visual_feats": features, "visual_pos": boxes},
        relevance,
        1,
        additional_forward_kwargs=further,
        fractions=FRACTIONS[:6],  # LXMERT can't do without any region
        perturbations_per_eval=3,
        softmax=False,
    )
    for sample in range(2):
        places = in_order(relevance[sample], "positive")
        for step, fraction in enumerate(FRACTIONS[:6]):
            stay = sorted(places[up(fraction, 9) :])
            with torch.no_grad():
                expected = answer(
                    visual_feats=features[sample, stay][None],
                    visual_pos=boxes[sample, stay][None],
                    input_ids=words[sample][None],
                    attention_mask=mask[sample][None],
                )[0, 1]
            torch.testing.assert_close(curve.scores[sample, step], expected, rtol=0, atol=1e-12)


def test_a_model_that_fails_without_tokens_is_refused(relevance):
    with pytest.raises(InvalidInputError, match="no token is left"):
        token_removal(classifier(), IDS, relevance, 1)
    token_removal(classifier(), IDS, relevance, 1, fractions=(0.0, 0.5, 0.85))


def test_a_batch_equals_its_samples(bert, relevance):
    def run(rows):
        inputs = {"input_ids": IDS[rows], "attention_mask": (IDS[rows] != 0).long()}
        return token_removal(bert, inputs, relevance[rows], 1, keep=KEEP[rows])

    together = run(slice(None))
    for sample in range(4):
        alone = run(slice(sample, sample + 1))
        torch.testing.assert_close(alone.scores[0], together.scores[sample], rtol=0, atol=1e-12)
        assert torch.equal(alone.predictions[0], together.predictions[sample])


def test_what_to_keep_may_be_zeros_and_ones(bert, relevance):
    inputs = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
    curves = [token_removal(bert, inputs, relevance, 1, keep=keep) for keep in (KEEP, KEEP.long())]
    assert torch.equal(curves[0].scores, curves[1].scores)


def test_padding_has_no_effect(bert, relevance):
    def run(columns):
        inputs = {
            "input_ids": IDS[1:2, :columns],
            "attention_mask": (IDS[1:2, :columns] != 0).long(),
        }
        return token_removal(bert, inputs, relevance[1:2, :columns], 1, keep=KEEP[1:2, :columns])

    torch.testing.assert_close(run(9).scores, run(6).scores, rtol=0, atol=1e-12)


def test_embeddings_are_tokens_too():
    model = classifier()
    ids = IDS[:2, :6]
    embeddings = model.embed(ids).detach()
    features = torch.randn_like(embeddings)
    of_ids = token_removal(model, ids, features.sum(2), 1, keep=ids < 4)
    of_embeddings = token_removal(model, embeddings, features, 1, keep=ids < 4)
    torch.testing.assert_close(of_ids.scores, of_embeddings.scores)


def test_no_more_samples_run_together_than_were_asked_for(relevance):
    model, seen = classifier(), []

    def counted(ids, mask):
        seen.append(len(ids))
        return model(ids, mask)

    for perturbations_per_eval in (1, 2):
        seen.clear()
        token_removal(
            counted,
            (IDS, (IDS != 0).long()),
            relevance,
            1,
            keep=KEEP,
            perturbations_per_eval=perturbations_per_eval,
        )
        assert max(seen) <= 4 * perturbations_per_eval
        assert sum(seen) == 4 * len(FRACTIONS)


def test_invalid_arguments_are_refused(bert, relevance):
    mask = (IDS != 0).long()
    with pytest.raises(
        InvalidInputError, match="may have one entry per token: if so, give it with"
    ):
        token_removal(classifier(), IDS, relevance, 1, additional_forward_args=mask, keep=KEEP)
    with pytest.raises(AmbiguousOutputError, match="needed are scores"):
        token_removal(lambda ids, mask: ids, IDS, relevance, 1, mask, keep=KEEP)
    with pytest.raises(InvalidInputError, match="booleans, or zeros and ones"):
        token_removal(bert, IDS, relevance, 1, keep=2 * KEEP.long())
    with pytest.raises(InvalidInputError, match="one for each"):
        token_removal(bert, IDS, relevance, 1, keep=KEEP[:, 1:])
    with pytest.raises(InvalidInputError, match="one entry per token"):
        token_removal(bert, (IDS, mask[:, :3]), relevance, 1)
    with pytest.raises(InvalidInputError, match="pixel_perturbation"):
        token_removal(bert, torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4), 1)
    with pytest.raises(InvalidInputError, match="doesn't belong"):
        token_removal(bert, IDS, relevance[:, 1:], 1)
    with pytest.raises(InvalidInputError, match="increasing"):
        token_removal(bert, IDS, relevance, 1, fractions=(0.5, 0.25))
