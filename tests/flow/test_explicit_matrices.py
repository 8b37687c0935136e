"""The token flow equals products of matrices that are built by hand from attention maps."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from captum_transformer import AttentionRollout, GenericAttentionRelevance, RawAttention
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow
from captum_transformer.trace import traced_forward
from tests.flow.models import (
    TOKENS,
    WIDTH,
    LastToken,
    MaskedEinsum,
    MaskedFill,
    MaskedMean,
    MaskedProduct,
    MaskedTransposed,
    MaskedWhere,
    MeanPooled,
    Model,
    TwoClassTokens,
    TwoTokens,
    maps_of,
)
from tests.flow.wirings import (
    Gated,
    InnerSkip,
    InPlace,
    Parallel,
    ParallelFirst,
    PostNorm,
    ProjectedInnerSkip,
    ProjectedSkip,
    ReducedKeys,
    Rotary,
    Sinks,
    TalkingHeads,
    Windows,
)

WIRINGS = [
    Sinks,
    TalkingHeads,
    ReducedKeys,
    TwoClassTokens,
    Model,
    MeanPooled,
    MaskedMean,
    MaskedFill,
    MaskedTransposed,
    MaskedWhere,
    MaskedEinsum,
    MaskedProduct,
    TwoTokens,
    LastToken,
    Parallel,
    ParallelFirst,
    PostNorm,
    Gated,
    InPlace,
    ProjectedSkip,
    InnerSkip,
    ProjectedInnerSkip,
    Rotary,
]


def by_hand(model: Model, x: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of ICCV 2021's R and R - I, of the normalised rollout, and of the last map."""
    maps: list[Tensor] = []
    score = model(x, maps)[:, target].sum()
    gradients = torch.autograd.grad(score, maps)
    eye = torch.eye(TOKENS, dtype=x.dtype)
    relevance, rollout = eye, eye
    for weights, gradient in zip(maps, gradients, strict=True):
        relevance = relevance + (weights * gradient).relu().mean(1) @ model.spread @ relevance
        attention = eye + weights.mean(1) @ model.spread
        rollout = attention / attention.sum(-1, keepdim=True) @ rollout
    row = model.row
    passed = row @ (relevance - eye)
    return row @ relevance, passed, row @ rollout, row @ maps[-1].mean(1) @ model.spread


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_flow_equals_the_row_of_explicit_matrices(wiring):
    model = wiring()
    x = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    relevance, passed, rollout, last = by_hand(model, x, 2)
    plain = GenericAttentionRelevance(model, pooled_evidence=False)
    torch.testing.assert_close(plain.attribute_tokens(x, 2), passed)
    with_identity = GenericAttentionRelevance(model, with_identity=True)
    torch.testing.assert_close(with_identity.attribute_tokens(x, 2), relevance)
    with_identity = AttentionRollout(model, with_identity=True)
    torch.testing.assert_close(with_identity.attribute_tokens(x, 2), rollout)
    # In each of the two layers half of the rollout bypasses attention if rows sum up to one.
    if not issubclass(wiring, (Sinks, TalkingHeads)):
        found = AttentionRollout(model).attribute_tokens(x, 2)
        torch.testing.assert_close(found, rollout - model.row / 4)
    torch.testing.assert_close(RawAttention(model).attribute_tokens(x, 2), last)


def test_a_skip_over_several_blocks_counts_the_tokens_once():
    class Nested(Model):
        def forward(self, x, maps=None):
            inner = x
            for block in self.blocks:
                inner, weights = self.block(block, inner)
                if maps is not None:
                    maps.append(weights)
            return self.read(x + inner)

    model, x = Nested(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    # The product of the blocks has the tokens themselves already: the outer skip adds nothing.
    _, expected, _, _ = by_hand(model, x, 2)
    torch.testing.assert_close(GenericAttentionRelevance(model).attribute_tokens(x, 2), expected)


def test_full_maps_are_the_product_of_the_layers():
    model, x = Model(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    maps = GenericAttentionRelevance(model).relevance_maps(x, 1)
    relevance, passed, _, _ = by_hand(model, x, 1)
    torch.testing.assert_close(maps["x", "x"][:, 0], passed)
    maps = GenericAttentionRelevance(model, with_identity=True).relevance_maps(x, 1)
    torch.testing.assert_close(maps["x", "x"][:, 0], relevance)


@pytest.mark.parametrize("normalize", [False, True])
def test_windows_and_merging_equal_explicit_matrices(normalize):
    model, x = Windows(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    maps: list[Tensor] = []
    model(x, maps)
    shift = torch.eye(TOKENS, dtype=x.dtype).roll(1, 0)
    row = torch.full((1, TOKENS), 1 / TOKENS, dtype=x.dtype).expand(2, 1, TOKENS)
    for weights in reversed(maps):
        attention = weights.mean(1).unflatten(0, (2, 2))
        blocks = torch.stack([torch.block_diag(*sample) for sample in attention])
        matrix = torch.eye(TOKENS, dtype=x.dtype) + shift.T @ blocks @ shift
        if normalize:
            matrix = matrix / matrix.sum(-1, keepdim=True)
        row = row @ matrix
    method = AttentionRollout(model, normalize_rows=normalize, with_identity=True)
    torch.testing.assert_close(method.attribute_tokens(x, 0), row[:, 0])


@pytest.mark.parametrize(
    "stem",
    [
        nn.Conv2d(3, 4, 4, stride=4),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 2, stride=2, dilation=2), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), FrozenBatchNorm2d(4), nn.MaxPool2d(3, 2, 1)),
    ],
    ids=["patches", "overlapping", "grouped", "max pool", "dilated", "frozen norm"],
)
def test_a_stem_keeps_sums_and_spreads_them_evenly(stem):
    images = torch.randn(2, 3, 8, 8)
    with traced_forward(stem.train(), Arguments(images), keep=KEEP) as forward:
        value = forward.tape.find(forward.output)
        share = torch.rand(value.shape)
        (result,) = TokenFlow(forward.tape, {})({value: share}, forward.values).values()
    torch.testing.assert_close(result.sum((1, 2, 3)), share.sum((1, 2, 3)))
    if isinstance(stem, nn.Conv2d) and stem.stride == stem.kernel_size:
        expected = share.sum(1).repeat_interleave(4, 1).repeat_interleave(4, 2) / 48
        torch.testing.assert_close(result, expected[:, None].expand(2, 3, 8, 8))


class WithoutSkip(Model):
    """As where LeViT merges tokens: the first block has no skip connection around its attention."""

    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        return out if block is self.blocks[0] else x + out, weights


def test_layers_behind_attention_without_a_skip():
    model, x = WithoutSkip(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    maps: list[Tensor] = []
    model(x, maps)
    first, last = (weights.mean(1) for weights in maps)
    rolled = (torch.eye(TOKENS, dtype=x.dtype) + last) / 2 @ first
    torch.testing.assert_close(AttentionRollout(model).attribute_tokens(x, 0), rolled[:, 0])
    torch.testing.assert_close(RawAttention(model, layer=0).attribute_tokens(x, 0), first[:, 0])
    for method in (RawAttention(model), AttentionRollout(model, start_layer=1)):
        with pytest.raises(UnsupportedOperationError, match="leads back to no input"):
            method.attribute(x, 0)
