"""Convolutional stems, heads and decoders around attention: nothing is lost on the way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.calling import Arguments
from captum_transformer.rules import relevance
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow
from captum_transformer.rules.propagate import propagate
from captum_transformer.trace import traced_forward


def features(*shape: int) -> Tensor:
    """What stands behind a ReLU: no sum of them cancels."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1


def upsampled(mode: str):
    return lambda x: F.interpolate(x, scale_factor=2, mode=mode)


TRANSPOSED = {
    "apart": nn.ConvTranspose2d(8, 6, 2, stride=2),
    "overlapping": nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
    "depthwise": nn.ConvTranspose2d(8, 8, 4, stride=4, groups=8),
    "with gaps": nn.ConvTranspose2d(8, 6, 2, stride=3, groups=2),
    "dilated": nn.ConvTranspose2d(8, 6, 2, dilation=2),
}
LAYERS = {
    "convolution": nn.Conv2d(8, 6, 3, stride=2, padding=1),
    "grouped convolution": nn.Conv2d(8, 6, 3, padding=1, groups=2),
    "dilated convolution": nn.Conv2d(8, 6, 3, dilation=2),
    **{f"transposed, {name}": layer for name, layer in TRANSPOSED.items()},
    "batch norm": nn.BatchNorm2d(8),
    "average pooling": nn.AvgPool2d(3, 2, 1),
    "max pooling": nn.MaxPool2d(3, 2, 1),
    "adaptive pooling": nn.AdaptiveAvgPool2d(4),
    "maximum": lambda x: x.amax((2, 3)),
    "mean": lambda x: x.mean((2, 3)),
    "nearest": upsampled("nearest"),
    "bilinear": upsampled("bilinear"),
    "padding": lambda x: F.pad(x, (1, 1, 1, 1)),
    "pixel shuffle": nn.PixelShuffle(2),
    "patches": lambda x: F.unfold(x, 2, stride=2),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_relevance_and_shares_are_kept(layer):
    if isinstance(layer, nn.Module):
        layer = copy.deepcopy(layer).double().eval()
        for parameter in layer.parameters():
            # Where nothing is positive, relevance has nowhere to go.
            parameter.data.abs_()
    x = features(2, 8, 6, 6)
    with traced_forward(
        lambda x: layer(x * 1), Arguments(x), keep=relevance.TABLE.keep | KEEP
    ) as forward:
        value = forward.tape.find(forward.output)
        # No input reaches the gaps of a transposed convolution.
        reached = layer(x) != layer(torch.zeros_like(x))
        given = {value: features(*value.shape) * reached}
        flow = TokenFlow(forward.tape, {})(given, forward.values)
        rules = propagate(forward.tape, given, relevance.TABLE, forward.values)
    total = given[value].flatten(1).sum(1)
    for result in (flow, rules):
        (result,) = result.values()
        torch.testing.assert_close(result.sum((1, 2, 3)), total, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layer", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolutions_follow_alpha_beta(layer):
    layer, x = layer.double(), torch.randn(1, 8, 3, 3, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(layer, x).reshape(-1, x.numel())
    with traced_forward(lambda x: layer(x * 1), Arguments(x), keep=relevance.TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        given = {value: features(*value.shape)}
        found = propagate(forward.tape, given, relevance.TABLE, forward.values)
    positive = (matrix * x.flatten()).clamp(min=0)
    total = positive.sum(1, keepdim=True)
    shares = torch.where(total > 0, positive / total, 0)
    expected = (given[value].flatten() @ shares).view_as(x)
    torch.testing.assert_close(next(iter(found.values())), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", TRANSPOSED.values(), ids=TRANSPOSED)
def test_shares_go_evenly_to_what_a_transposed_convolution_reads(layer):
    layer, x = layer.double(), torch.randn(1, 8, 3, 3, dtype=torch.float64)
    reads = torch.autograd.functional.jacobian(layer, x).reshape(-1, x.numel()) != 0
    with traced_forward(layer, Arguments(x), keep=KEEP) as forward:
        value = forward.tape.find(forward.output)
        given = {value: features(*value.shape)}
        (found,) = TokenFlow(forward.tape, {})(given, forward.values).values()
    shares = reads.double() / reads.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(found, (given[value].flatten() @ shares).view_as(x))


class Hybrid(nn.Module):
    """A convolutional stem, attention on its grid, and a convolutional head; without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(16, 16, 1, bias=False),
        )
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 16, bias=False)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2, bias=False)
        self.local = nn.Conv2d(16, 16, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(16, 4, bias=False)
        self.double().eval()

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.stem(pixels)
        tokens = grid.flatten(2).mT
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        attended = self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        grid = (tokens + attended).mT.unflatten(2, grid.shape[2:])
        grid = self.up(grid) + F.interpolate(grid, scale_factor=2, mode="bilinear")
        return self.head(F.adaptive_avg_pool2d(self.local(grid).relu(), 1).flatten(1))


def images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)


def test_full_lrp_is_conserved_from_head_to_pixels():
    found = TransformerAttribution(Hybrid(), propagate_to_input=True).attribute(images(), 1)
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64))


def test_conservative_lrp_sums_up_to_the_score():
    model = Hybrid()
    found = ConservativeLRP(model).attribute(images(), 1)
    torch.testing.assert_close(found.sum((1, 2, 3)), model(images())[:, 1].detach())


def test_rollout_keeps_its_sum():
    found = AttentionRollout(Hybrid(), with_identity=True).attribute(images(), 1)
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("method", [AttnLRP, GenericAttentionRelevance, TransformerAttribution])
def test_a_batch_is_explained_as_its_samples(method):
    explain = method(Hybrid())
    alone = [explain.attribute(image[None], 1) for image in images()]
    torch.testing.assert_close(explain.attribute(images(), 1), torch.cat(alone))
