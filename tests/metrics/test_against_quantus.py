"""Scores that Quantus computes as well are the same; skipped if it isn't installed."""

import pytest
import torch
from torch import nn

from captum_transformer.metrics import (
    energy_inside,
    grid_pointing_game,
    pointing_game,
    rationale_scores,
)

quantus = pytest.importorskip("quantus")


@pytest.fixture
def maps():
    return torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def masks():
    masks = torch.zeros(6, 8, 8, dtype=torch.bool)
    for sample in range(6):
        masks[sample, sample % 3 : sample % 3 + 4, 1 : 3 + sample] = True
    return masks


def scored(metric, maps, masks, **arguments):
    """The metric's own values for maps that it is given; the model has no part in them."""
    scores = metric(
        model=nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
        x_batch=torch.rand(6, 1, 8, 8).numpy(),
        y_batch=torch.zeros(6).long().numpy(),
        a_batch=maps[:, None].numpy(),
        s_batch=masks[:, None].numpy(),
        channel_first=True,
        **arguments,
    )
    return torch.tensor(scores, dtype=torch.float64)


PLAIN = {"abs": False, "normalise": False, "disable_warnings": True}


def test_pointing_game(maps, masks):
    expected = scored(quantus.PointingGame(**PLAIN), maps, masks)
    assert 0 < expected.sum() < 6
    assert pointing_game(maps, masks).equal(expected)


def test_energy_inside_is_relevance_mass_accuracy(maps, masks):
    expected = scored(quantus.RelevanceMassAccuracy(**PLAIN), maps.clamp(min=0), masks)
    torch.testing.assert_close(energy_inside(maps, masks), expected, rtol=0, atol=1e-12)


def test_energy_inside_is_attribution_localisation(maps, masks):
    metric = quantus.AttributionLocalisation(**PLAIN, positive_attributions=True)
    expected = scored(metric, maps, masks)
    # It adds an epsilon to what it divides by.
    torch.testing.assert_close(energy_inside(maps, masks), expected, rtol=0, atol=1e-9)


def test_as_many_places_as_are_right_is_relevance_rank_accuracy(maps, masks):
    expected = scored(quantus.RelevanceRankAccuracy(**PLAIN), maps, masks)
    precision, recall, f1 = rationale_scores(maps.flatten(1), masks.flatten(1))
    for score in (precision, recall, f1):
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", range(4))
def test_the_grid_game_is_focus_with_one_cell_of_the_class(maps, cell):
    places = tuple(int(i == cell) for i in range(4))
    expected = scored(quantus.Focus(**PLAIN), maps, maps > 0, custom_batch=[places] * len(maps))
    result = grid_pointing_game(maps, cell)
    # It adds an epsilon to what it divides by.
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
