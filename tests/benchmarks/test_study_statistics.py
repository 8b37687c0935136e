"""Scores of the study, their intervals, ranks and comparison with papers."""

import numpy as np
import pytest
import torch

from benchmarks.study.bootstrap import Score, draw
from benchmarks.study.order import untied
from benchmarks.study.papers import compare


def test_the_interval_of_a_mean_is_the_one_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = draw(Score.of(values.tolist())).interval()
    margin = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - margin, abs=0.03)
    assert found.high == pytest.approx(values.mean() + margin, abs=0.03)


def test_pairs_are_drawn_together():
    values = np.random.default_rng(1).normal(0, 100, 50)
    larger, values = Score.of((values + 1).tolist()), Score.of(values.tolist())
    found = draw(larger).minus(draw(values)).interval()
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_samples_of_a_group_are_drawn_together():
    values = [0.0, 1.0, 0.0, 1.0] * 10
    alone = draw(Score([[v] for v in values])).interval()
    # Each group has both, so that whichever groups are drawn the mean is the same.
    pairs = draw(Score([[v] for v in values], groups=[i // 2 for i in range(40)])).interval()
    assert alone.high - alone.low > 0.2
    assert (pairs.low, pairs.high) == pytest.approx((0.5, 0.5))


def test_counts_are_summed_before_they_are_divided():
    score = Score([[1, 2, 30, 40], [3, 8, 10, 40]], "ratios")
    assert draw(score).value == pytest.approx((4 / 10 + 40 / 80) / 2)


def test_correlation_and_slope_are_those_of_numpy():
    x, y = np.random.default_rng(1).normal(size=(2, 30))
    moments = np.stack([x, y, x * x, y * y, x * y], 1).tolist()
    assert draw(Score(moments, "correlation")).value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert draw(Score(moments, "slope")).value == pytest.approx(np.polyfit(x, y, 1)[0])


def test_ties_are_broken_at_random_and_nothing_else_is():
    relevance = torch.zeros(500, 4)
    relevance[:, 2] = 1
    relevance[:, 0] = -1
    ranks = untied(relevance)
    assert (ranks[:, 2] == 3).all()
    assert (ranks[:, 0] == 0).all()
    assert 0.4 < (ranks[:, 1] == 1).double().mean() < 0.6
    assert torch.equal(ranks, untied(relevance))


def test_the_published_order_is_compared():
    published = {"AttentionRollout": 2.0, "AttentionGradCam": 1.0, "TransformerAttribution": 3.0}
    ours = {name: Score.of([value, value]) for name, value in published.items()}
    same = compare("vision", "perturbation", "predicted, negative", ours)
    assert same.rank_correlation.value == 1
    turned = {name: Score.of([-value, -value]) for name, value in published.items()}
    other = compare("vision any/model", "perturbation", "predicted, negative", turned)
    assert other.rank_correlation.value == -1
    assert compare("vision", "segmentation", "mIoU", ours) is None
