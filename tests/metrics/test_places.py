import pytest
import torch

from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics import rank_places, replace_places
from captum_transformer.metrics.places import as_baselines, counts, place_relevance
from tests.metrics.by_hand import down, in_order, up


@pytest.mark.parametrize("order", ["positive", "negative"])
@pytest.mark.parametrize("with_keep", [True, False])
def test_ranks_are_those_by_hand_with_ties_in_reading_order(order, with_keep):
    torch.manual_seed(0)
    relevance = torch.randn(20, 30).round(decimals=0)
    keep = torch.rand(20, 30) < 0.3 if with_keep else None
    rank = rank_places(relevance, order, keep)
    for row in range(20):
        expected = in_order(relevance[row], order, None if keep is None else keep[row])
        assert rank[row].argsort()[: len(expected)].tolist() == expected


def test_fractions_are_counted_exactly():
    fractions = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    places = torch.arange(0, 200)
    for rounding, expected in (("up", up), ("down", down)):
        shares, found = counts(fractions, places, rounding)
        assert found.tolist() == [[expected(f, n) for f in fractions] for n in range(200)]
        assert shares == fractions
    # ceil(0.1 * 3 * 10) is 4 in binary numbers.
    assert counts([0.1 * 3], torch.tensor([10]), "up")[1].item() == 3
    assert counts([1 / 3], torch.tensor([3]), "down")[1].item() == 1


@pytest.mark.parametrize("fractions", [[], [0.5, 0.5], [0.5, 0.2], [-0.1], [1.1]])
def test_other_fractions_are_refused(fractions):
    with pytest.raises(InvalidInputError, match="increasing numbers between 0 and 1"):
        counts(fractions, torch.tensor([4]), "up")


def test_relevance_of_channels_and_features_is_summed_up():
    images, tokens = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 7)
    for relevance in (images.sum(1), images.sum(1, keepdim=True), images, {"x": images}, (images,)):
        torch.testing.assert_close(place_relevance(relevance, images), images.sum(1).flatten(1))
    torch.testing.assert_close(place_relevance(tokens, tokens), tokens.sum(2))
    torch.testing.assert_close(place_relevance(tokens.sum(2), tokens), tokens.sum(2))


def test_relevance_that_does_not_fit_is_refused():
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(InvalidInputError, match="interpolate"):
        place_relevance(torch.rand(2, 4), images)
    with pytest.raises(InvalidInputError, match=r"expected \(2, 4, 4\) or \(2, 1, 4, 4\)"):
        place_relevance(torch.rand(1, 4, 4), images)
    with pytest.raises(InvalidInputError, match="a tuple of 2"):
        place_relevance((images, images), images)
    with pytest.raises(InvalidInputError, match="finite"):
        place_relevance(images / 0, images)
    with pytest.raises(InvalidInputError, match="'positive' or 'negative'"):
        rank_places(torch.rand(1, 2), "best")


def test_places_get_the_baseline_of_their_channel():
    images = torch.rand(2, 3, 2, 2)
    changed = torch.tensor([[True, False, False, True], [False, False, True, False]])
    found = replace_places(images, as_baselines([1.0, 2.0, 3.0], images), changed)
    for sample in range(2):
        for place in range(4):
            row, column = divmod(place, 2)
            expected = images[sample, :, row, column]
            if changed[sample, place]:
                expected = torch.tensor([1.0, 2.0, 3.0])
            assert torch.equal(found[sample, :, row, column], expected)


def test_baselines_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInputError, match="one number per channel"):
        as_baselines([0.1, 0.2], torch.rand(2, 3, 4, 4))
    with pytest.raises(InvalidInputError, match="must be an id"):
        as_baselines(0.5, torch.ones(2, 3).long())
