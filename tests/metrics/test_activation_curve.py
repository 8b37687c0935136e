from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, mean_squared_error
from torch import nn

from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics import activation_curve, pixel_perturbation, pruning_curve
from tests.metrics.by_hand import classifier, in_order, up

FRACTIONS = [step / 10 for step in range(11)]
UNKNOWN = 1
IDS = torch.tensor([[2, 11, 12, 13, 14, 15, 3], [2, 21, 22, 23, 3, 0, 0], [2, 11, 3, 0, 0, 0, 0]])
PADDING = IDS == 0


@pytest.fixture
def relevance():
    torch.manual_seed(1)
    return torch.randn(3, 7).round(decimals=1)


def masked(model):
    return lambda ids: model(ids, (ids != 0).long())


@pytest.mark.parametrize("perturbations_per_eval", [1, 4, 100])
def test_activation_is_that_by_hand(relevance, perturbations_per_eval):
    model = masked(classifier())
    target = torch.tensor([0, 2, 1])
    curve = activation_curve(
        model,
        IDS,
        relevance,
        target,
        baselines=UNKNOWN,
        keep=PADDING,
        perturbations_per_eval=perturbations_per_eval,
    )
    assert curve.fractions.tolist() == pytest.approx(FRACTIONS)
    areas = []
    for sample in range(3):
        places = in_order(relevance[sample], "positive", PADDING[sample])
        points = []
        for fraction in FRACTIONS:
            ids = torch.where(IDS[sample] == 0, 0, UNKNOWN)
            for place in places[: up(fraction, len(places))]:
                ids[place] = IDS[sample, place]
            points.append(model(ids[None])[0].softmax(0)[target[sample]].item())
        assert curve.scores[sample].tolist() == pytest.approx(points, abs=1e-12)
        areas.append(auc(FRACTIONS, points))
    np.testing.assert_allclose(curve.area(), areas, rtol=1e-12)


@pytest.mark.parametrize("absolute", [True, False])
def test_pruning_is_that_by_hand(relevance, absolute):
    model = masked(classifier())
    curve = pruning_curve(
        model,
        IDS,
        relevance,
        baselines=UNKNOWN,
        keep=PADDING,
        absolute=absolute,
        perturbations_per_eval=3,
    )
    for sample in range(3):
        values = relevance[sample].abs() if absolute else relevance[sample]
        places = in_order(values, "negative", PADDING[sample])
        whole = model(IDS[sample][None])[0].detach()
        points = []
        for fraction in FRACTIONS:
            ids = IDS[sample].clone()
            ids[places[: up(fraction, len(places))]] = UNKNOWN
            # The authors' code sums over the classes, scikit-learn takes the mean.
            points.append(3 * mean_squared_error(whole, model(ids[None])[0].detach()))
        assert curve.scores[sample].tolist() == pytest.approx(points, abs=1e-12)
    assert curve.scores[:, 0].tolist() == [0, 0, 0]


def test_zeroed_embeddings_are_those_by_hand(relevance):
    model = classifier()
    embeddings = model.embed(IDS).detach()
    mask = (IDS != 0).long()
    features = torch.randn_like(embeddings)
    curve = activation_curve(model, embeddings, features, 1, mask, baselines=0, keep=PADDING)
    for sample in range(3):
        places = in_order(features[sample].sum(1), "positive", PADDING[sample])
        for step, fraction in enumerate(FRACTIONS):
            x = embeddings[sample].clone()
            x[places[up(fraction, len(places)) :]] = 0
            expected = model(x[None], mask[sample][None])[0].softmax(0)[1].detach()
            torch.testing.assert_close(curve.scores[sample, step], expected, rtol=0, atol=1e-12)


def test_revealing_the_most_relevant_is_blackening_the_least_relevant_backwards():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 3)).double()
    images, relevance = torch.rand(2, 2, 4, 5).double(), torch.randn(2, 4, 5)
    revealed = activation_curve(model, images, relevance, 1, baselines=0.3)
    blackened = pixel_perturbation(
        model, images, relevance, 1, baselines=0.3, order="negative", fractions=FRACTIONS
    )
    torch.testing.assert_close(revealed.scores, blackened.scores.flip(1))


def test_it_is_pixel_flipping_of_quantus_backwards():
    quantus = pytest.importorskip("quantus")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    series, relevance = torch.rand(4, 1, 10), torch.randn(4, 1, 10)
    labels = torch.tensor([0, 1, 2, 1])
    flipping = quantus.PixelFlipping(
        features_in_step=1, perturb_baseline=0.0, normalise=False, disable_warnings=True
    )
    least_first = flipping(
        model=model,
        x_batch=series.numpy(),
        y_batch=labels.numpy(),
        a_batch=-relevance.numpy(),
        softmax=True,
        channel_first=True,
    )
    curve = activation_curve(
        model, series.transpose(1, 2), relevance.transpose(1, 2), labels, baselines=0
    )
    expected = torch.tensor(least_first).flip(1)
    torch.testing.assert_close(curve.scores[:, :10], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "function", [partial(activation_curve, target=1), pruning_curve], ids=["activation", "pruning"]
)
def test_a_batch_equals_its_samples(relevance, function):
    model = masked(classifier())

    def run(rows):
        return function(model, IDS[rows], relevance[rows], baselines=UNKNOWN, keep=PADDING[rows])

    together = run(slice(None))
    for sample in range(3):
        alone = run(slice(sample, sample + 1))
        torch.testing.assert_close(alone.scores[0], together.scores[sample], rtol=0, atol=1e-12)
        assert torch.equal(alone.predictions[0], together.predictions[sample])


def test_a_right_order_has_a_large_activation_and_a_small_pruning_area():
    torch.manual_seed(0)
    weight = torch.randn(8, dtype=torch.float64)

    def model(x):  # a linear score, of which each token's part is known
        score = x.sum(2) @ weight
        return torch.stack([score, -score], 1)

    x = torch.rand(3, 8, 2, dtype=torch.float64)
    right = x * weight[:, None]
    wrong = torch.rand_like(x)
    activation = [activation_curve(model, x, r, 0, baselines=0).area() for r in (right, wrong)]
    pruning = [pruning_curve(model, x, r, baselines=0).area() for r in (right, wrong)]
    assert (activation[0] > activation[1]).all()
    assert (pruning[0] < pruning[1]).all()


def test_the_whole_input_is_always_the_first_of_pruning(relevance):
    model = masked(classifier())
    curve = pruning_curve(model, IDS, relevance, baselines=UNKNOWN, fractions=(0.5, 1.0))
    assert curve.fractions.tolist() == [0, 0.5, 1]
    assert (curve.scores[:, 0] == 0).all()


def test_the_model_and_the_ids_are_left_as_they_were(relevance):
    model, kept = classifier().train(), IDS.clone()
    activation_curve(model, IDS, relevance, 1, baselines=UNKNOWN)
    pruning_curve(model, IDS, relevance, baselines=UNKNOWN)
    assert all(module.training for module in model.modules())
    assert torch.equal(IDS, kept)


def test_invalid_arguments_are_refused(relevance):
    model = classifier()
    mask = (IDS != 0).long()
    with pytest.raises(InvalidInputError, match="one tensor whose tokens are covered"):
        activation_curve(model, (IDS, mask), relevance, 1, baselines=UNKNOWN)
    with pytest.raises(InvalidInputError, match="must be an id"):
        pruning_curve(model, IDS, relevance, baselines=0.5)
    with pytest.raises(InvalidInputError, match="doesn't belong"):
        activation_curve(model, IDS, relevance[:, 1:], 1, baselines=UNKNOWN)
    with pytest.raises(InvalidInputError, match="by position"):
        activation_curve(model, {"ids": IDS}, relevance, 1, mask, baselines=UNKNOWN)
