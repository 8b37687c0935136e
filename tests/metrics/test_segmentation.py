import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, jaccard_score

from captum_transformer.metrics import SegmentationScores, segmentation_scores


def samples(seed, levels, count=5, size=(9, 7)):
    """Maps with many ties or with hardly any, and masks of all sizes, none of them empty."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-levels, levels, (count, *size), generator=generator).double()
    bounds = torch.linspace(0.1, 0.9, count)[:, None, None]
    return maps, torch.rand(count, *size, generator=generator) < bounds


def per_sample(score, *columns):
    return torch.tensor(
        [score(*(c.flatten().numpy() for c in row)) for row in zip(*columns, strict=True)],
        dtype=torch.float64,
    )


def both_classes(scaled, mask):
    """What the authors' code calls average precision."""
    return average_precision_score(
        np.concatenate([~mask, mask]), np.concatenate([1 - scaled, scaled])
    )


def scaled_to_one(maps):
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


@pytest.mark.parametrize("levels", [2, 100_000])
def test_each_sample_agrees_with_scikit_learn(levels):
    maps, masks = samples(0, levels)
    found = maps > maps.mean((1, 2), keepdim=True)
    scores = segmentation_scores(maps, masks)

    same = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(
        scores.pixel_accuracies, per_sample(accuracy_score, masks, found), **same
    )
    ious = per_sample(lambda a, b: jaccard_score(a, b, average="macro"), masks, found)
    torch.testing.assert_close(scores.mean_ious, ious, **same)
    areas = per_sample(both_classes, scaled_to_one(maps), masks)
    torch.testing.assert_close(scores.average_precisions, areas, **same)
    usual = segmentation_scores(maps, masks, foreground_only=True).average_precisions
    torch.testing.assert_close(usual, per_sample(average_precision_score, masks, maps), **same)


def test_a_data_set_adds_up_its_counts_and_not_its_quotients():
    maps, masks = samples(1, 100_000, count=6)
    found = maps > maps.mean((1, 2), keepdim=True)
    batches = zip(maps.split([1, 3, 2]), masks.split([1, 3, 2]), strict=True)
    scores = SegmentationScores.cat(segmentation_scores(*batch) for batch in batches)

    truth, prediction = masks.flatten().numpy(), found.flatten().numpy()
    expected = jaccard_score(truth, prediction, average="macro")
    assert scores.mean_iou.item() == pytest.approx(expected, abs=1e-12)
    assert scores.mean_iou.item() != pytest.approx(scores.mean_ious.mean().item(), abs=1e-4)
    assert scores.pixel_accuracy.item() == pytest.approx(accuracy_score(truth, prediction))
    assert scores.mean_average_precision == scores.average_precisions.mean()
    assert len(scores.average_precisions) == 6


def test_by_hand():
    # The mean is 4: found are the 9 and the 5. Foreground: one of two; background: two of three.
    scores = segmentation_scores(
        torch.tensor([[[9.0, 1.0], [5.0, 1.0]]]), torch.tensor([[[1, 0], [0, 0]]])
    )
    assert scores.pixel_accuracies.tolist() == [3 / 4]
    assert scores.mean_ious.item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    # Scores of foreground 1, 0, .5, 0 and of background 0, 1, .5, 1; true are the first and the
    # last three: three at 1, all right, then one of two at .5.
    assert scores.average_precisions.item() == pytest.approx(3 / 4 + 1 / 4 * 4 / 5)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_constant_map_is_background_and_chance(value):
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[0, 0] = True
    constant = torch.full((1, 3, 3), value)
    scores = segmentation_scores(constant, mask)
    assert scores.intersection.tolist() == [[6, 0]]
    assert scores.pixel_accuracies.item() == pytest.approx(2 / 3)
    assert scores.mean_ious.item() == pytest.approx((2 / 3 + 0) / 2)
    assert scores.average_precisions.item() == pytest.approx(1 / 2)
    usual = segmentation_scores(constant, mask, foreground_only=True)
    assert usual.average_precisions.item() == pytest.approx(1 / 3)


def test_an_empty_mask_has_scores_of_its_background():
    maps = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    scores = segmentation_scores(maps, torch.zeros(1, 1, 4))
    assert scores.pixel_accuracies.tolist() == [3 / 4]
    assert scores.mean_ious.tolist() == [(3 / 4 + 0) / 2]
    with pytest.raises(ValueError, match=r"1 of 1 samples \(0\) is empty"):
        segmentation_scores(maps, torch.zeros(1, 1, 4), foreground_only=True)


def test_ignored_pixels_do_not_count():
    maps, masks = samples(2, 1000, count=3)
    ignore = torch.rand(maps.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    found, kept = maps > maps.mean((1, 2), keepdim=True), ~ignore
    scores = segmentation_scores(maps, masks, ignore=ignore)
    for row in range(3):
        keep = kept[row]
        truth, prediction = masks[row][keep].numpy(), found[row][keep].numpy()
        assert scores.pixel_accuracies[row] == pytest.approx(accuracy_score(truth, prediction))
        expected = jaccard_score(truth, prediction, average="macro")
        assert scores.mean_ious[row] == pytest.approx(expected)
        scaled = scaled_to_one(maps)[row][keep].numpy()
        assert scores.average_precisions[row] == pytest.approx(both_classes(scaled, truth))


def test_channels_are_summed():
    maps, masks = samples(4, 1000, count=2)
    split = torch.stack([maps - 5, torch.full_like(maps, 5)], 1)
    both = segmentation_scores(split, masks[:, None]), segmentation_scores(maps, masks)
    for one, other in zip(vars(both[0]).values(), vars(both[1]).values(), strict=True):
        torch.testing.assert_close(one, other)


def test_inputs_that_cannot_be_scored_are_refused():
    maps, masks = samples(5, 1000, count=2)
    with pytest.raises(ValueError, match=r"\(2, 9, 7\), got \(2, 18, 14\)"):
        segmentation_scores(maps, torch.ones(2, 18, 14))
    with pytest.raises(ValueError, match="zeros and ones"):
        segmentation_scores(maps, masks * 255)
    maps[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 2 samples \(1\) holds NaN"):
        segmentation_scores(maps, masks)
