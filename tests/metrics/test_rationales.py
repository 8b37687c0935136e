import itertools

import pytest
import torch
from sklearn.metrics import (
    auc,
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)

from captum_transformer.metrics import rationale_auprc, rationale_scores


def texts(levels, count=6, length=12):
    """Relevance, rationales and masks: the sixth text is the shortest; each has a rationale."""
    generator = torch.Generator().manual_seed(levels)
    relevance = torch.randint(-levels, levels, (count, length), generator=generator).double()
    rationale = torch.rand(count, length, generator=generator) < 0.4
    rationale[:, 0] = True
    lengths = torch.arange(length, length - count, -1)
    return relevance, rationale, (torch.arange(length) < lengths[:, None]).long()


def trapezoid(truth, scores):
    precision, recall, _ = precision_recall_curve(truth, scores)
    return auc(recall, precision)


@pytest.mark.parametrize("levels", [2, 100_000])
@pytest.mark.parametrize(
    ("interpolation", "area"), [("linear", trapezoid), ("step", average_precision_score)]
)
def test_areas_agree_with_scikit_learn(levels, interpolation, area):
    relevance, rationale, mask = texts(levels)
    areas = rationale_auprc(relevance, rationale, attention_mask=mask, interpolation=interpolation)
    for row, keep in enumerate(mask.bool()):
        expected = area(rationale[row][keep].numpy(), relevance[row][keep].numpy())
        assert areas[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("k", "number"),
    [
        (1, lambda length, _: 1),
        (4, lambda length, _: 4),
        (99, lambda length, _: length),
        (0.25, lambda length, _: int(length * 0.25 + 0.5)),
        (1e-6, lambda length, _: 1),
        (1.0, lambda length, _: length),
        (None, lambda _, rationale: rationale),
    ],
)
def test_scores_at_k_agree_with_scikit_learn(k, number):
    relevance, rationale, mask = texts(100_000)
    scores = rationale_scores(relevance, rationale, k=k, attention_mask=mask)
    for row, keep in enumerate(mask.bool()):
        values, truth = relevance[row][keep], rationale[row][keep]
        chosen = torch.zeros_like(truth)
        chosen[values.topk(number(len(values), int(truth.sum()))).indices] = True
        for score, function in zip(scores, (precision_score, recall_score, f1_score), strict=True):
            assert score[row] == pytest.approx(function(truth.numpy(), chosen.numpy()), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_ties_count_as_if_broken_at_random(k):
    relevance = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    rationale = torch.tensor([False, True, True, False, True])
    orders = [torch.tensor(order) for order in itertools.permutations(range(5))]
    orders = [order for order in orders if (relevance[order].diff() <= 0).all()]
    hits = torch.stack([rationale[order[:k]].double().sum() for order in orders])
    precision, recall, f1 = rationale_scores(relevance[None], rationale[None], k=k)
    assert precision.item() == pytest.approx((hits / k).mean().item())
    assert recall.item() == pytest.approx((hits / 3).mean().item())
    assert f1.item() == pytest.approx((2 * hits / (k + 3)).mean().item())


def test_a_constant_map_gets_chance():
    rationale = torch.tensor([[1, 0, 0, 1, 0]])
    constant = torch.full((1, 5), 0.1)
    precision, recall, _ = rationale_scores(constant, rationale, k=3)
    assert precision.item() == pytest.approx(2 / 5)
    assert recall.item() == pytest.approx(3 / 5)
    area = rationale_auprc(constant, rationale, interpolation="step")
    assert area.item() == pytest.approx(2 / 5)
    # As scikit-learn draws the curve, from precision one at recall zero.
    assert rationale_auprc(constant, rationale).item() == pytest.approx((1 + 2 / 5) / 2)


def test_padding_has_no_effect():
    relevance, rationale, mask = texts(3)
    cut = mask.sum(1).min()
    mask[:, cut:] = 0
    padded = relevance.masked_fill(mask == 0, 99.0), rationale | (mask == 0)
    whole = relevance[:, :cut], rationale[:, :cut]
    for k in (2, 0.5, None):
        for one, other in zip(
            rationale_scores(*padded, k=k, attention_mask=mask),
            rationale_scores(*whole, k=k),
            strict=True,
        ):
            torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        rationale_auprc(*padded, attention_mask=mask), rationale_auprc(*whole)
    )


def test_invalid_arguments_are_refused():
    relevance, rationale, mask = texts(5)
    for k in (0, -1, 1.5, 0.0):
        with pytest.raises(ValueError, match="`k` must be a whole number"):
            rationale_scores(relevance, rationale, k=k)
    mask[3] = 0
    with pytest.raises(ValueError, match=r"`rationale` of 1 of 6 samples \(3\) is empty"):
        rationale_auprc(relevance, rationale, attention_mask=mask)
    with pytest.raises(ValueError, match=r"relevance.sum\(-1\)"):
        rationale_auprc(relevance[..., None], rationale[..., None])
    with pytest.raises(ValueError, match="'step' or 'linear'"):
        rationale_auprc(relevance, rationale, interpolation="cubic")
