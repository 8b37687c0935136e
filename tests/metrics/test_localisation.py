import pytest
import torch

from captum_transformer.metrics import (
    boxes_to_masks,
    energy_inside,
    grid_pointing_game,
    pointing_game,
)


def random_maps(seed, count=4, size=(8, 6)):
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed)).double()


def random_masks(seed, count=4, size=(8, 6)):
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed)) < 0.4


def hits_by_hand(maps, masks, tolerance):
    """The distance from the one peak to each pixel of the object."""
    hits = []
    for values, mask in zip(maps, masks, strict=True):
        y, x = divmod(values.argmax().item(), values.shape[1])
        distances = (mask.nonzero() - torch.tensor([y, x])).double().norm(dim=1)
        hits.append(float(distances.min() <= tolerance))
    return hits


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 2.9])
def test_a_peak_hits_if_it_is_near_enough(tolerance):
    maps, masks = random_maps(0, count=40), torch.zeros(40, 8, 6, dtype=torch.bool)
    masks[torch.arange(40), torch.arange(40) % 8, torch.arange(40) % 5] = True
    expected = hits_by_hand(maps, masks, tolerance)
    assert 0 < sum(expected) < 40
    assert pointing_game(maps, masks, tolerance=tolerance).tolist() == expected


def test_tied_peaks_hit_as_often_as_one_picked_at_random():
    patches = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]])
    pixels = patches.repeat_interleave(4, 1).repeat_interleave(4, 2)
    mask = boxes_to_masks(torch.tensor([[2, 0, 5, 4]]), (8, 8))
    assert pointing_game(pixels, mask).tolist() == [0.5]  # columns 2 and 3 of the patch
    constant = torch.zeros(1, 8, 8)
    assert pointing_game(constant, mask).item() == pytest.approx(mask.double().mean().item())


def test_energy_by_hand():
    maps = torch.tensor([[[3.0, -5.0], [1.0, 0.0]], [[-1.0, -2.0], [0.0, -3.0]]])
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]]])
    assert energy_inside(maps, masks).tolist() == [0.75, 0.0]  # nothing positive: nothing inside


def test_energy_of_a_constant_map_is_the_size_of_the_mask():
    masks = random_masks(1)
    size = masks.double().mean((1, 2))
    torch.testing.assert_close(energy_inside(torch.full(masks.shape, 0.3), masks), size)


def test_energy_of_tokens():
    relevance = torch.tensor([[1.0, 2.0, -4.0, 1.0]])
    assert energy_inside(relevance, torch.tensor([[0, 1, 1, 0]])).tolist() == [0.5]
    assert pointing_game(relevance, torch.tensor([[0, 1, 1, 0]])).tolist() == [1.0]


@pytest.mark.parametrize("grid", [(1, 2), (2, 2), (4, 3)])
def test_the_grid_game_is_the_energy_inside_the_cell(grid):
    maps = random_maps(2)
    height, width = 8 // grid[0], 6 // grid[1]
    shares = []
    for cell in range(grid[0] * grid[1]):
        row, column = divmod(cell, grid[1])
        box = [column * width, row * height, (column + 1) * width, (row + 1) * height]
        mask = boxes_to_masks(torch.tensor([box] * 4), (8, 6))
        cells = torch.full((4,), cell)
        shares.append(grid_pointing_game(maps, cells, grid=grid))
        torch.testing.assert_close(shares[-1], energy_inside(maps, mask))
        assert grid_pointing_game(maps, cell, grid=grid).equal(shares[-1])
    torch.testing.assert_close(sum(shares), torch.ones(4, dtype=torch.float64))


def test_the_grid_game_without_evidence_is_lost():
    assert grid_pointing_game(torch.tensor([[[-1.0, 0.0]]]), 0, grid=(1, 2)).tolist() == [0.0]
    assert grid_pointing_game(torch.ones(1, 2, 2), 3).tolist() == [0.25]


def test_boxes_of_several_objects_and_of_none():
    masks = boxes_to_masks(
        [torch.tensor([[0, 0, 1, 1], [2, 1, 4, 2]]), torch.empty(0, 4)], size=(2, 4)
    )
    assert masks.int().tolist() == [[[1, 0, 0, 0], [0, 0, 1, 1]], [[0, 0, 0, 0]] * 2]


def test_a_pixel_is_in_a_box_if_its_centre_is():
    masks = boxes_to_masks(torch.tensor([[0.5, -3.0, 2.4, 99.0]]), (1, 4))
    assert masks.int().tolist() == [[[1, 1, 0, 0]]]


@pytest.mark.parametrize("score", [pointing_game, energy_inside])
def test_there_is_no_score_of_an_empty_mask(score):
    masks = random_masks(3)
    masks[2] = False
    with pytest.raises(ValueError, match=r"`mask` of 1 of 4 samples \(2\) is empty"):
        score(random_maps(3), masks)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"2 x 4 cells doesn't divide .* \(4, 8, 6\)"):
        grid_pointing_game(random_maps(4), 0, grid=(2, 4))
    with pytest.raises(ValueError, match="numbered from 0 to 3"):
        grid_pointing_game(random_maps(4), 4)
    with pytest.raises(ValueError, match="xywh"):
        boxes_to_masks(torch.tensor([[5, 5, 2, 2]]), (8, 8))
    with pytest.raises(ValueError, match=r"\(samples, 4\)"):
        boxes_to_masks(torch.ones(2, 5), (8, 8))
    with pytest.raises(ValueError, match="distance in pixels"):
        pointing_game(torch.ones(1, 3), torch.ones(1, 3), tolerance=2)
    with pytest.raises(ValueError, match="negative"):
        pointing_game(torch.ones(1, 3, 3), torch.ones(1, 3, 3), tolerance=-1)
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        energy_inside(torch.ones(3), torch.ones(3))
