import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, auc

from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics import Curve

FRACTIONS = torch.tensor([0.0, 0.1, 0.25, 0.7, 0.9], dtype=torch.float64)


@pytest.fixture
def curve():
    torch.manual_seed(0)
    scores, predictions = torch.rand(6, 5, dtype=torch.float64), torch.randint(3, (6, 5))
    return Curve(FRACTIONS, scores, predictions)


def test_the_plain_area_is_that_of_scikit_learn(curve):
    expected = [auc(FRACTIONS, row) for row in curve.scores]
    np.testing.assert_allclose(curve.area(normalized=False), expected, rtol=1e-12)
    expected = [auc(FRACTIONS[1:], row[1:]) for row in curve.scores]
    np.testing.assert_allclose(
        curve.area(normalized=False, start_at_zero=False), expected, rtol=1e-12
    )


def test_the_normalized_area_of_a_constant_is_the_constant():
    flat = Curve(FRACTIONS, torch.full((2, 5), 0.3, dtype=torch.float64))
    for start_at_zero in (True, False):
        assert flat.area(start_at_zero=start_at_zero).tolist() == pytest.approx([0.3, 0.3])


def test_the_area_of_a_line_by_hand():
    line = Curve(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[1.0, 0.5, 0.0]]))
    assert line.area().item() == 0.5
    assert line.area(start_at_zero=False).item() == 0.25
    assert line.area(start_at_zero=False, normalized=False).item() == 0.125


def test_accuracy_is_that_of_scikit_learn(curve):
    labels = torch.randint(3, (6,))
    expected = [accuracy_score(labels, column) for column in curve.predictions.t()]
    assert curve.accuracy(labels).tolist() == pytest.approx(expected)
    assert curve.accuracy(labels.tolist()).tolist() == pytest.approx(expected)
    area = auc(FRACTIONS, np.asarray(expected))
    assert curve.hits(labels).area(normalized=False).mean().item() == pytest.approx(area)


def test_without_labels_the_original_prediction_is_right(curve):
    assert torch.equal(curve.accuracy(), curve.accuracy(curve.predictions[:, 0]))
    assert curve.accuracy()[0] == 1


def test_batches_are_joined(curve):
    halves = [
        Curve(FRACTIONS, curve.scores[s], curve.predictions[s]) for s in (slice(2), slice(2, 6))
    ]
    joined = Curve.cat(halves)
    assert torch.equal(joined.scores, curve.scores)
    assert torch.equal(joined.predictions, curve.predictions)
    assert torch.equal(joined.mean(), curve.scores.mean(0))


def test_invalid_arguments_are_refused(curve):
    with pytest.raises(InvalidInputError, match=r"fractions \(F,\), scores \(B, F\)"):
        Curve(FRACTIONS, torch.rand(2, 4))
    later = Curve(FRACTIONS[1:], curve.scores[:, 1:], curve.predictions[:, 1:])
    assert torch.equal(later.area(start_at_zero=False), curve.area(start_at_zero=False))
    with pytest.raises(InvalidInputError, match="no point at fraction 0"):
        later.area()
    with pytest.raises(InvalidInputError, match="no original predictions"):
        later.accuracy()
    with pytest.raises(InvalidInputError, match="two points"):
        Curve(FRACTIONS[:1], curve.scores[:, :1]).area()
    with pytest.raises(InvalidInputError, match="one score per sample"):
        Curve(FRACTIONS, curve.scores).accuracy()
    with pytest.raises(InvalidInputError, match=r"shape \(6,\), got \(5,\)"):
        curve.accuracy(torch.zeros(5))
    with pytest.raises(InvalidInputError, match="same fractions"):
        Curve.cat([curve, later])
