"""The token flow against matrices that are built by hand from explicit attention maps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
    RawAttention,
)
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow
from captum_transformer.trace import traced_forward

WIDTH, HEADS, TOKENS = 8, 2, 6


def maps_of(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention probabilities (with a graph) and what they make of the values."""
    q, k, v = block.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return weights, block.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))


class Model(nn.Module):
    """Two blocks; how they are wired and what the head reads is up to the subclasses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)
        self.double()

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        for block in self.blocks:
            x, weights = self.block(block, x)
            if maps is not None:
                maps.append(weights)
        return self.read(x)

    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        x = x + out
        return x + block.mlp(block.norm2(x)), weights

    def read(self, x):
        return self.head(x[:, 0])

    row = torch.eye(TOKENS, dtype=torch.float64)[0]
    # What part of each token a key stands for.
    spread = torch.eye(TOKENS, dtype=torch.float64)


class MeanPooled(Model):
    def read(self, x):
        return self.head(x.mean(1))

    row = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)


class MaskedMean(Model):
    def read(self, x):
        mask = torch.tensor([1.0, 1, 1, 0, 1, 0], dtype=x.dtype)[None, :, None]
        return self.head((x * mask).sum(1) / mask.sum(1))

    row = torch.tensor([1, 1, 1, 0, 1, 0], dtype=torch.float64) / 4


class MaskedFill(MaskedMean):
    def read(self, x):
        out = torch.tensor([False, False, False, True, False, True])
        return self.head(x.masked_fill(out[:, None], 0).sum(1) / 4)


class MaskedTransposed(MaskedMean):
    def read(self, x):
        mask = torch.tensor([1.0, 1, 1, 0, 1, 0], dtype=x.dtype)[:, None]
        return self.head((x * mask).transpose(1, 2).contiguous().mean(-1) * (6 / 4))


class MaskedWhere(MaskedMean):
    def read(self, x):
        mask = torch.tensor([True, True, True, False, True, False])[:, None]
        return self.head(torch.where(mask, x, torch.zeros_like(x)).sum(1))


class MaskedEinsum(MaskedMean):
    def read(self, x):
        mask = torch.tensor([[1.0, 1, 1, 0, 1, 0]], dtype=x.dtype).expand(len(x), -1)
        return self.head(torch.einsum("bnd,bn->bd", x, mask))


class MaskedProduct(MaskedMean):
    def read(self, x):
        mask = torch.tensor([[1.0, 1, 1, 0, 1, 0]], dtype=x.dtype)
        return self.head((mask @ x)[:, 0])


class TwoTokens(Model):
    def read(self, x):
        return (self.head(x[:, 0]) + self.head(x[:, 1])) / 2

    row = torch.tensor([0.5, 0.5, 0, 0, 0, 0], dtype=torch.float64)


class LastToken(Model):
    def read(self, x):
        return self.head(x[torch.arange(len(x)), torch.full((len(x),), TOKENS - 1)])

    row = torch.eye(TOKENS, dtype=torch.float64)[-1]


class Parallel(Model):
    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        return x + out + block.mlp(block.norm2(x)), weights


class ParallelFirst(Model):
    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        return block.mlp(block.norm2(x)) + out + x, weights


class PostNorm(Model):
    def block(self, block, x):
        weights, out = maps_of(block, x)
        x = block.norm(out + x)
        return block.norm2(block.mlp(x) + x), weights


class Gated(Model):
    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        x = x + out * torch.tensor(0.3, dtype=x.dtype)
        up, gate = block.mlp[0](block.norm2(x)).chunk(2, -1)
        return x + F.silu(gate) * up, weights


class InPlace(Model):
    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        x = x.clone()
        x += out
        return block.mlp(block.norm2(x)).add_(x), weights


class ProjectedSkip(Model):
    """As between the stages of Hiera, where the number of features changes."""

    def block(self, block, x):
        normed = block.norm(x)
        weights, out = maps_of(block, normed)
        x = block.out(normed) + out
        return x + block.mlp(block.norm2(x)), weights


class InnerSkip(Model):
    """As in MViTv2, where the queries are added to what they attended to."""

    def block(self, block, x):
        normed = block.norm(x)
        weights, out = maps_of(block, normed)
        x = x + block.out(out + normed)
        return x + block.mlp(block.norm2(x)), weights


class ProjectedInnerSkip(Model):
    def block(self, block, x):
        normed = block.norm(x)
        weights, out = maps_of(block, normed)
        return (out + block.out(normed)).transpose(0, 1) + x.transpose(0, 1), weights

    def forward(self, x, maps=None):
        for block in self.blocks:
            x, weights = self.block(block, x)
            x = x.transpose(0, 1)
            if maps is not None:
                maps.append(weights)
        return self.read(x)


class Sinks(Model):
    """As in GPT-OSS, where part of the attention goes to a learned score and is lost."""

    def block(self, block, x):
        q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        sinks = torch.tensor([0.5, -1.0], dtype=x.dtype)[:, None, None].expand(
            len(x), -1, TOKENS, 1
        )
        scores = torch.cat([q @ k.mT, sinks], -1)
        weights = (scores - scores.amax(-1, keepdim=True)).softmax(-1)[..., :-1]
        x = x + block.out((weights @ v).transpose(1, 2).flatten(2))
        return x + block.mlp(block.norm2(x)), weights


class TalkingHeads(Model):
    """As in CaiT, where heads are mixed before and after the softmax: rows don't sum up to one."""

    def block(self, block, x):
        mix = torch.tensor([[0.8, -0.3], [0.4, 0.9]], dtype=x.dtype)
        q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = F.linear((q @ k.mT).permute(0, 2, 3, 1), mix).permute(0, 3, 1, 2)
        weights = F.linear(scores.softmax(-1).permute(0, 2, 3, 1), mix.T).permute(0, 3, 1, 2)
        x = x + block.out((weights @ v).transpose(1, 2).flatten(2))
        return x + block.mlp(block.norm2(x)), weights


class ReducedKeys(Model):
    """As in PVT, where keys and values are made of pairs of tokens."""

    def block(self, block, x):
        normed = block.norm(x)
        pairs = F.avg_pool1d(normed.mT, 2).mT
        q = block.qkv(normed)[..., :WIDTH].unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = block.qkv(pairs)[..., WIDTH:].unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT).softmax(-1)
        x = x + block.out((weights @ v).transpose(1, 2).flatten(2))
        # Each key stands for both tokens of its pair, half for each.
        return x + block.mlp(block.norm2(x)), weights

    spread = torch.eye(TOKENS // 2, dtype=torch.float64).repeat_interleave(2, -1) / 2


class TwoClassTokens(Model):
    """As in a distilled DeiT: two heads, each with a token of its own."""

    def read(self, x):
        return (self.head(x[:, 0]) + self.head(x[:, 1].flip(-1))) / 2

    row = torch.tensor([0.5, 0.5, 0, 0, 0, 0], dtype=torch.float64)


class Rotary(Model):
    """Queries and keys as complex numbers that are turned by their positions."""

    def block(self, block, x):
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in block.qkv(x).chunk(3, -1))
        angles = torch.arange(1, TOKENS + 1, dtype=x.dtype)[:, None]
        turns = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * turns)
            for t in (q, k)
        )
        weights = (q.flatten(-2) @ k.flatten(-2).mT).softmax(-1)
        return x + block.out((weights @ v).transpose(1, 2).flatten(2)), weights


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
    # Each of the two layers leaves a half of what passes no attention, where rows sum up to one.
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
    # The outer skip and the blocks: all of their product, the tokens themselves counted once.
    _, expected, _, _ = by_hand(model, x, 2)
    torch.testing.assert_close(GenericAttentionRelevance(model).attribute_tokens(x, 2), expected)


def test_full_maps_are_the_product_of_the_layers():
    model, x = Model(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    maps = GenericAttentionRelevance(model).relevance_maps(x, 1)
    relevance, passed, _, _ = by_hand(model, x, 1)
    torch.testing.assert_close(maps["x", "x"][:, 0], passed)
    maps = GenericAttentionRelevance(model, with_identity=True).relevance_maps(x, 1)
    torch.testing.assert_close(maps["x", "x"][:, 0], relevance)


class Windows(Model):
    """Attention within two shifted windows, then the tokens of each pair are merged."""

    def block(self, block, x):
        rolled = x.roll(1, 1).unflatten(1, (2, 3)).flatten(0, 1)
        weights, out = maps_of(block, block.norm(rolled))
        return x + out.unflatten(0, (-1, 2)).flatten(1, 2).roll(-1, 1), weights

    def read(self, x):
        merged = torch.cat([x[:, 0::2], x[:, 1::2]], -1)
        return self.head(merged[..., :WIDTH] + merged[..., WIDTH:]).mean(1)


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
def test_a_stem_keeps_sums_and_spreads_evenly(stem):
    images = torch.randn(2, 3, 8, 8)
    with traced_forward(stem.train(), Arguments(images), keep=KEEP) as forward:
        value = forward.tape.find(forward.output)
        share = torch.rand(value.shape)
        (result,) = TokenFlow(forward.tape, {})({value: share}, forward.values).values()
    torch.testing.assert_close(result.sum((1, 2, 3)), share.sum((1, 2, 3)))
    if isinstance(stem, nn.Conv2d) and stem.stride == stem.kernel_size:
        expected = share.sum(1).repeat_interleave(4, 1).repeat_interleave(4, 2) / 48
        torch.testing.assert_close(result, expected[:, None].expand(2, 3, 8, 8))


def test_mixing_signals_without_softmax_is_refused():
    class Bilinear(Model):
        def read(self, x):
            return (x @ x.mT @ x)[:, 0]

    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match=r"`matmul`.*attention must be a softmax"):
        GenericAttentionRelevance(Bilinear()).attribute(x, 0)


class FactorisedAttention(Model):
    """As in CoaT: a softmax over tokens, but of the keys alone."""

    def block(self, block, x):
        q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = q @ (k.softmax(-2).mT @ v)
        return x + block.out(out.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout, RawAttention])
def test_queries_that_weigh_what_keys_have_collected_are_refused(method):
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match=r"`matmul`.*mixes several signals"):
        method(FactorisedAttention()).attribute(x, 0)


class LinearAttention(Model):
    def block(self, block, x):
        q, k, v = block.qkv(x).chunk(3, -1)
        return x + block.out(q @ (k.mT @ v)), None


class WeightedTokens(Model):
    def block(self, block, x):
        q, k, v = block.qkv(x).chunk(3, -1)
        return x + block.out((q[..., :1].softmax(-2) * k).cumsum(-2) * v), None


@pytest.mark.filterwarnings("ignore:The model has attention whose weights are held constant")
@pytest.mark.parametrize("model", [LinearAttention, WeightedTokens])
def test_a_branch_that_mixes_tokens_unread_is_refused(model):
    class AfterAttention(model):
        def block(self, block, x):
            return (Model if block is self.blocks[0] else model).block(self, block, x)

    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="contribution of its branch would be lost"):
        GenericAttentionRelevance(AfterAttention()).attribute(x, 0)
    assert ConservativeLRP(AfterAttention()).attribute(x, 0).any()


def test_a_layer_that_does_not_exist_is_refused():
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"layer=2 was asked for, but .* 2 layers of attention"):
        RawAttention(Model(), layer=2).attribute(x, 0)


class WithoutSkip(Model):
    """As where LeViT merges tokens: the first block hands on what its attention gives, no more."""

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


class ChannelAttention(Model):
    """Attention among a token's channels, as in XCiT, without a skip beside it."""

    def block(self, block, x):
        q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 4, 1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1)
        return block.out((weights @ v).permute(0, 3, 1, 2).flatten(2)), weights


def test_attention_among_channels_is_no_map_of_tokens():
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="among channels, not among tokens"):
        GenericAttentionRelevance(ChannelAttention()).attribute(x, 0)
    relevance = ConservativeLRP(ChannelAttention()).attribute(x, 0)
    assert relevance.isfinite().all()
    assert relevance.any()


def test_softmax_weights_outside_a_sum_are_refused():
    class Weighted(Model):
        def read(self, x):
            return self.head((x * x[..., :1].softmax(1))[:, 0])

    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="softmax weights multiply a signal"):
        GenericAttentionRelevance(Weighted()).attribute(x, 0)


def test_maps_of_windows_cannot_be_multiplied():
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match=r"can't be multiplied.* runs over windows"):
        GenericAttentionRelevance(Windows()).relevance_maps(x, 0)


def test_heads_before_samples_are_refused_where_heads_matter():
    class HeadsFirst(Model):
        def block(self, block, x):
            q, k, v = (torch.cat(t.chunk(HEADS, -1)) for t in block.qkv(x).chunk(3, -1))
            weights = (q @ k.mT).softmax(-1)
            return x + block.out(torch.cat((weights @ v).chunk(HEADS), -1)), weights

    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="heads"):
        AttentionGradCam(HeadsFirst()).attribute(x, 0)
    assert GenericAttentionRelevance(HeadsFirst()).attribute(x, 0).any()


@pytest.mark.parametrize(
    ("output", "target"),
    [(lambda y: y.flatten(), None), (lambda y: y.mean(), None), (lambda y: y.T[..., None], (0, 0))],
)
def test_one_score_per_sample_is_explained(output, target):
    class Odd(Model):
        def read(self, x):
            return output(self.head(x[:, 0]))

    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"(4|8|1) scores, but there are 2 samples"):
        GenericAttentionRelevance(Odd()).attribute(x, target)
