"""Padding takes no share, whether a layer pads by itself or the model pads before it."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer.calling import Arguments
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow
from captum_transformer.trace import traced_forward

SAME = {
    "convolution": (
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3, stride=2)),
    ),
    "grouped": (
        nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3),
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 6, 3, stride=2, groups=3)),
    ),
    "behind an activation": (
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    ),
    "mean": (
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.AvgPool2d(3, 2, padding=1),
    ),
    "mean behind padding": (
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.Sequential(nn.ZeroPad2d(1), nn.AvgPool2d(3, 2)),
    ),
}


def flowed(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What an uneven share of the output makes of the input, and the share."""
    with traced_forward(model, Arguments(images), keep=KEEP) as forward:
        value = forward.tape.find(forward.output)
        generator = torch.Generator().manual_seed(0)
        share = torch.rand(value.shape, dtype=torch.float64, generator=generator)
        (result,) = TokenFlow(forward.tape, {})({value: share}, forward.values).values()
    return result, share


@pytest.mark.parametrize("kind", SAME)
def test_padding_before_a_layer_is_as_padding_within_it(kind):
    images = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    within, before = (flowed(model.double(), images) for model in SAME[kind])
    torch.testing.assert_close(before[0], within[0])
    torch.testing.assert_close(before[0].sum((1, 2, 3)), before[1].sum((1, 2, 3)))


class Merging(nn.Module):
    """Pairs of tokens become one; the last one of an odd number is alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(8), nn.Linear(8, 6)

    def merged(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(self.merged(nn.functional.pad(x, (0, 0, 0, 1)))))


class MergingParts(Merging):
    def merged(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 0::2], x[:, 1::2]], -1)


class MergingChunks(Merging):
    def merged(self, x: Tensor) -> Tensor:
        return torch.cat(x.unflatten(1, (-1, 2)).unbind(2), -1)


@pytest.mark.parametrize("merging", [Merging, MergingParts, MergingChunks])
def test_a_token_that_is_merged_with_padding_keeps_its_share(merging):
    result, share = flowed(merging().double(), torch.randn(2, 5, 4, dtype=torch.float64))
    made = share.sum(-1)
    expected = torch.stack([made[:, 0] / 2, made[:, 0] / 2, made[:, 1] / 2, made[:, 1] / 2], 1)
    expected = torch.cat([expected, made[:, 2:]], 1)
    torch.testing.assert_close(result, expected[..., None].expand(2, 5, 4) / 4)
