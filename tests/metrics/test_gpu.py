"""Where the inputs are, there the metrics are computed, and they say the same."""

import pytest
import torch

from captum_transformer.metrics import (
    activation_curve,
    conservation,
    pixel_perturbation,
    pruning_curve,
    token_removal,
)
from tests.metrics.by_hand import classifier

pytestmark = pytest.mark.gpu
IDS = torch.tensor([[2, 11, 12, 13, 14, 15, 3], [2, 21, 22, 23, 3, 0, 0]])


def curves(device):
    torch.manual_seed(0)
    model = classifier().to(device)
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


def test_curves_are_those_of_the_cpu():
    for here, there in zip(curves("cpu"), curves("cuda"), strict=True):
        assert there.scores.is_cuda
        assert there.predictions.is_cuda
        assert there.area().is_cuda
        torch.testing.assert_close(there.scores.cpu(), here.scores)
        assert torch.equal(there.fractions.cpu(), here.fractions)


def test_relevance_and_labels_may_be_elsewhere():
    images, weight = torch.rand(2, 3, 4, 4), torch.randn(48, 3, device="cuda")
    target = torch.tensor([0, 1])
    curve = pixel_perturbation(
        lambda x: x.flatten(1) @ weight, images.cuda(), images, target, baselines=0
    )
    assert curve.accuracy(target).is_cuda
    points = conservation(lambda x: x.flatten(1) @ weight, images.cuda(), images, target)
    assert points.slope().is_cuda
