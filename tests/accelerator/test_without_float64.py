"""Explanations and metrics on devices without float64, such as Apple's MPS."""

from functools import cache

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from captum_transformer import AttnLRP
from captum_transformer.calling import precision
from captum_transformer.metrics import black
from captum_transformer.visualization import places_of
from tests.accelerator.module import MODULE, NAME
from tests.attr.subjects import (
    MAGNIFY_ROUNDING,
    METHODS,
    as_tuple,
    assert_close,
    shared_out,
    subject,
)
from tests.metrics.test_gpu import curves, scores

pytestmark = pytest.mark.gpu


class Gated(nn.Module):
    """A gate whose entries are moved and masked on the way to its product."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("order", torch.tensor([3, 0, 5, 2, 4, 1]))
        self.register_buffer("mask", torch.tensor([True, True, False, True, True, False]))

    def forward(self, tokens):
        hidden = self.layer(self.attention(tokens, tokens, tokens)[0].mean(1))
        places = self.order.expand(hidden.shape)
        moved = torch.zeros_like(hidden).scatter(1, places, hidden.gather(1, places))
        return self.head(hidden * torch.where(self.mask, moved, 0.0).sigmoid())


@pytest.fixture(autouse=True)
def _has_no_float64(device, monkeypatch):
    if device.type != NAME:
        pytest.skip("a real one, which may have it")
    monkeypatch.setattr(MODULE, "has_double", False)
    # What is known of the devices holds for a process.
    monkeypatch.setattr(precision, "_has_float64", cache(precision._has_float64.__wrapped__))


def test_what_is_tested_here(device):
    with pytest.raises(TypeError, match=r"no torch\.float64"):
        torch.ones(2, device=device).double()
    assert precision.widest_float(device) is torch.float32
    assert precision.widest_float(torch.device("cpu")) is torch.float64


@pytest.mark.parametrize(("name", "method"), shared_out(["timm ViT", "timm Swin", "BERT", "GPT-2"]))
def test_maps_are_those_of_the_cpu(name, method, device):
    expected = as_tuple(subject(name).to(torch.float32).attribute(METHODS[method]))
    found = as_tuple(subject(name).to(torch.float32).to(device).attribute(METHODS[method]))
    assert all(relevance.device == device for relevance in found)
    there = tuple(relevance.cpu() for relevance in found)
    assert_close(there, expected, 1e-2 if method in MAGNIFY_ROUNDING else 1e-4)


def test_metrics_are_those_of_the_cpu(device, monkeypatch):
    for here, there in zip(curves("cpu"), curves(device, torch.float32), strict=True):
        torch.testing.assert_close(
            there.scores.cpu().to(here.scores.dtype), here.scores, rtol=1e-5, atol=1e-6
        )
    found = list(scores(device))
    # Ties of scaled maps are broken by rounding, so the CPU rounds as the accelerator does.
    monkeypatch.setattr(precision, "_has_float64", lambda device_type: False)
    for here, there in zip(scores("cpu"), found, strict=True):
        assert there.device == device
        torch.testing.assert_close(there.cpu(), here)


def test_pixels_are_normalised_there(device):
    mean, std = torch.tensor([0.5, 0.25]), torch.tensor([0.25, 0.5])
    assert black(mean.to(device), std.to(device)).tolist() == [-2, -0.5]


def test_places_of_pictures_that_are_processed_there(device):
    def process(pictures):
        return torch.stack([to_tensor(picture) for picture in pictures]).to(device)

    relevance = torch.arange(24.0, device=device).reshape(1, 3, 2, 4)
    (found,) = places_of(process, [Image.new("RGB", (4, 2))]).maps(relevance, [(1, 4)])
    assert found.tolist() == [relevance.cpu().sum((1, 2))[0].tolist()]


def test_an_activation_in_several_steps(device):
    """Entries are labelled by numbers that float32 does not have."""
    model, tokens = Gated(), torch.rand(2, 3, 4)
    expected = AttnLRP(model).attribute(tokens, target=1)
    found = AttnLRP(model.to(device)).attribute(tokens.to(device), target=1)
    assert_close(found.cpu(), expected, 1e-5)
