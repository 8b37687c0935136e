"""Where the inputs are, there the metrics are computed, and they say the same."""

import pytest
import torch

from captum_transformer.metrics import (
    activation_curve,
    boxes_to_masks,
    class_sensitivity,
    completeness,
    conservation,
    energy_inside,
    grid_pointing_game,
    model_randomisation,
    pixel_perturbation,
    pointing_game,
    pruning_curve,
    rationale_auprc,
    rationale_scores,
    segmentation_scores,
    token_removal,
)
from tests.metrics.by_hand import classifier

pytestmark = pytest.mark.gpu
IDS = torch.tensor([[2, 11, 12, 13, 14, 15, 3], [2, 21, 22, 23, 3, 0, 0]])


def curves(device, dtype=torch.float64):
    torch.manual_seed(0)
    model = classifier().to(device, dtype)
    ids, mask = IDS.to(device), (IDS != 0).long().to(device)
    relevance, target = torch.randn(2, 7).to(device), torch.tensor([0, 2]).to(device)
    images, weight = torch.rand(2, 3, 4, 4).to(device), torch.randn(48, 3).to(device)
    covered = {"additional_forward_args": mask, "baselines": 1, "keep": mask == 0}
    yield token_removal(model, (ids, mask), relevance, target, keep=ids < 4)
    yield activation_curve(model, ids, relevance, target, **covered)
    yield pruning_curve(model, ids, relevance, **covered)
    yield pixel_perturbation(
        lambda x: x.flatten(1) @ weight,
        images,
        images,
        target,
        baselines=[0.1, 0.2, 0.3],
        perturbations_per_eval=3,
    )


def test_curves_are_those_of_the_cpu(device):
    for here, there in zip(curves("cpu"), curves(device), strict=True):
        assert there.scores.device == device
        assert there.predictions.device == device
        assert there.area().device == device
        torch.testing.assert_close(there.scores.cpu(), here.scores)
        assert torch.equal(there.fractions.cpu(), here.fractions)


def test_relevance_and_labels_may_be_elsewhere(device):
    images, weight = torch.rand(2, 3, 4, 4), torch.randn(48, 3, device=device)
    target = torch.tensor([0, 1])
    curve = pixel_perturbation(
        lambda x: x.flatten(1) @ weight, images.to(device), images, target, baselines=0
    )
    assert curve.accuracy(target).device == device
    points = conservation(lambda x: x.flatten(1) @ weight, images.to(device), images, target)
    assert points.slope().device == device


def scores(device):
    maps = torch.randint(-5, 6, (4, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
    boxes = torch.tensor([[0, 0, 3, 4], [1, 2, 8, 8], [4, 4, 5, 6], [2, 0, 7, 3]]).to(device)
    masks = boxes_to_masks(boxes, (8, 8))
    yield masks
    yield from vars(segmentation_scores(maps, masks)).values()
    yield pointing_game(maps, masks, tolerance=1.5)
    yield energy_inside(maps, masks)
    yield grid_pointing_game(maps, boxes[:, 1] % 4)
    yield from rationale_scores(maps.flatten(1), masks.flatten(1), k=0.3)
    yield rationale_auprc(maps.flatten(1), masks.flatten(1), attention_mask=(maps < 5).flatten(1))
    yield class_sensitivity(maps, maps.roll(1))
    yield completeness(maps, boxes[:, 2].float())


def test_scores_are_those_of_the_cpu(device):
    for here, there in zip(scores("cpu"), scores(device), strict=True):
        assert there.device == device
        torch.testing.assert_close(there.cpu(), here)


def test_a_model_on_the_gpu_is_randomised_there_and_random_states_stay(device):
    model, ids = classifier().to(device), IDS.to(device)
    weights = [parameter.clone() for parameter in model.parameters()]
    backend = torch.get_device_module(device)
    states = torch.get_rng_state(), backend.get_rng_state()
    runs = [
        model_randomisation(model, lambda m: m(ids).detach(), order=order, seed=1)
        for order in ("cascading", "cascading", "independent")
    ]
    assert all(correlation.device == device for correlation in runs[0].values())
    assert all(runs[1][layer].equal(runs[0][layer]) for layer in runs[0])
    top = next(iter(runs[0]))
    assert runs[2][top].equal(runs[0][top])
    assert torch.get_rng_state().equal(states[0])
    assert backend.get_rng_state().equal(states[1])
    assert all(map(torch.equal, model.parameters(), weights))
