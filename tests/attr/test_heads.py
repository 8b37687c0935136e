"""AttentionGradCam averages over heads, and refuses models in which heads are not known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import (
    AttentionGradCam,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    RawAttention,
    RelevancePatching,
)
from captum_transformer.errors import UnsupportedOperationError

TOKENS, WIDTH, HEADS, WINDOW = 6, 8, 2, 3


def whole(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def written_out(q, k, v):
    return (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v


def heads_with_samples(q, k, v):
    """As in `torch.bmm`: (samples x heads, tokens, features)."""
    return written_out(*(part.flatten(0, 1) for part in (q, k, v))).view(q.shape)


def windows_with_samples(q, k, v):
    """(samples x windows, heads, tokens, features), as in Swin."""

    def cut(part):
        return part.unflatten(2, (-1, WINDOW)).transpose(1, 2).flatten(0, 1)

    out = whole(*map(cut, (q, k, v))).unflatten(0, (len(q), -1))
    return out.transpose(1, 2).flatten(2, 3)


def windows_ahead(q, k, v):
    """(samples, windows, heads, tokens, features), as in Twins."""

    def cut(part):
        return part.unflatten(2, (-1, WINDOW)).transpose(1, 2)

    return whole(*map(cut, (q, k, v))).transpose(1, 2).flatten(2, 3)


def windows_behind(q, k, v):
    """(samples, heads, windows, tokens, features), as in NesT."""
    return whole(*(p.unflatten(2, (-1, WINDOW)) for p in (q, k, v))).flatten(2, 3)


def masked_neighbours(q, k, v):
    place = torch.arange(TOKENS)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(place[:, None] - place).abs() <= 1)


def neighbours(q, k, v):
    """A window for each query, as by `unfold`."""
    k, v = (F.pad(part, (0, 0, 1, 1)).unfold(2, 3, 1) for part in (k, v))
    scores = q.unsqueeze(-2) @ k / (WIDTH // HEADS) ** 0.5
    inside = F.pad(torch.ones(TOKENS), (1, 1)).unfold(0, 3, 1).bool()
    return (scores.masked_fill(~inside[:, None], -1e9).softmax(-1) @ v.mT).squeeze(-2)


def gathered(q, k, v):
    places = (torch.arange(TOKENS)[:, None] + torch.arange(-1, 2)).clamp(0, TOKENS - 1)
    scores = q.unsqueeze(-2) @ k[:, :, places].mT
    return (scores.softmax(-1) @ v[:, :, places]).squeeze(-2)


def stacked(q, k, v):
    """All heads' queries in one sequence, with the keys of one head."""
    rows = q.flatten(1, 2)
    return ((rows @ k[:, 0].mT).softmax(-1) @ v[:, 0]).view(q.shape)


def joined(q, k, v):
    """Heads that are cut out one by one, and joined in front of the samples."""
    parts = (torch.cat(part.unbind(1)) for part in (q, k, v))
    return torch.stack(F.scaled_dot_product_attention(*parts).chunk(HEADS), 1)


def in_front(q, k, v):
    """(heads, samples, tokens, features)."""
    parts = (part.transpose(0, 1) for part in (q, k, v))
    return F.scaled_dot_product_attention(*parts).transpose(0, 1)


def in_front_by_einsum(q, k, v):
    scores = torch.einsum("bhnd,bhmd->hbnm", q, k) / (WIDTH // HEADS) ** 0.5
    return torch.einsum("hbnm,bhmd->bhnd", scores.softmax(-1), v)


def merged_in_front(q, k, v):
    """(heads x samples, tokens, features)."""
    parts = (part.transpose(0, 1).flatten(0, 1) for part in (q, k, v))
    return written_out(*parts).unflatten(0, (HEADS, -1)).transpose(0, 1)


def in_a_row(q, k, v):
    parts = (torch.stack(part.unbind(1)) for part in (q, k, v))
    return torch.stack(F.scaled_dot_product_attention(*parts).unbind(0), 1)


def in_front_of_windows(q, k, v):
    """(heads, windows, samples, tokens, features)."""
    parts = (p.unflatten(2, (-1, WINDOW)).permute(1, 2, 0, 3, 4) for p in (q, k, v))
    return whole(*parts).permute(2, 0, 1, 3, 4).flatten(2, 3)


def merged_with_windows(q, k, v):
    """(windows x samples x heads, tokens, features)."""
    cut = [p.unflatten(2, (-1, WINDOW)).permute(2, 0, 1, 3, 4) for p in (q, k, v)]
    out = written_out(*(part.flatten(0, 2) for part in cut)).view(cut[0].shape)
    return out.permute(1, 2, 0, 3, 4).flatten(2, 3)


def cut_out_and_stacked(q, k, v):
    """Heads that are cut out one by one, and stacked where they were."""
    q, k, v = (torch.stack(part.unbind(1), 1) for part in (q, k, v))
    return torch.stack(F.scaled_dot_product_attention(q, k, v).unbind(1), 1)


def by_complex_numbers(q, k, v):
    """Pairs of features as complex numbers and back, as in rotary embeddings."""

    def turned(part):
        pairs = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * 1.0).flatten(-2)

    return whole(turned(q), turned(k), v)


class Model(nn.Module):
    def __init__(self, core):
        super().__init__()
        torch.manual_seed(0)
        self.qkvs = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)
        self.core = core

    def attend(self, x):
        for qkv in self.qkvs:
            parts = qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + self.core(*parts).transpose(1, 2).flatten(2)
        return x

    def forward(self, x):
        return self.head(self.attend(x).mean(1))


class Packed(Model):
    """All samples in one sequence, of which each attends to its own."""

    def __init__(self):
        super().__init__(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, self.mask))

    def forward(self, x):
        sample = torch.arange(len(x)).repeat_interleave(TOKENS)
        self.mask = sample[:, None] == sample
        return self.head(self.attend(x.reshape(1, -1, WIDTH)).reshape(x.shape).mean(1))


@pytest.fixture
def x():
    return torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["row", "open"])
@pytest.mark.parametrize(
    ("core", "same"),
    [
        (written_out, whole),
        (heads_with_samples, whole),
        (cut_out_and_stacked, whole),
        (by_complex_numbers, whole),
        (in_front, whole),
        (in_front_by_einsum, whole),
        (merged_in_front, whole),
        (in_a_row, whole),
        (windows_ahead, windows_with_samples),
        (windows_behind, windows_with_samples),
        (in_front_of_windows, windows_with_samples),
    ],
)
def test_spellings_agree(core, same, pooling, x):
    def read(core, x):
        return AttentionGradCam(Model(core), pooling=pooling).attribute(x, 1)

    expected = read(same, x)
    torch.testing.assert_close(read(core, x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read(core, x[:1]), expected[:1], rtol=1e-4, atol=1e-5)


class Unknown(Model):
    """No operation before the output projection says which dimensions hold features."""

    def __init__(self, core, *, by_constants):
        super().__init__(core)
        self.norm, self.by_constants = nn.LayerNorm(WIDTH), by_constants

    def attend(self, x):
        for layer in self.qkvs:
            parts = [
                torch.einsum("bni,oi->bno", x, w) + b if self.by_constants else F.linear(x, w, b)
                for w, b in zip(layer.weight.chunk(3), layer.bias.chunk(3), strict=True)
            ]
            made = self.core(*(p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts))
            x = self.norm(x + made.transpose(1, 2).flatten(2))
        return x


@pytest.mark.parametrize("pooling", ["row", "map"])
def test_heads_are_known_if_features_are_known_later(pooling, x):
    def read(**options):
        return AttentionGradCam(Unknown(written_out, **options), pooling=pooling, layer=0)

    expected = read(by_constants=False).attribute(x, 1)
    torch.testing.assert_close(read(by_constants=True).attribute(x, 1), expected)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("core", [neighbours, gathered, stacked, joined, merged_with_windows])
def test_unknown_heads_are_refused(core, samples, x):
    with pytest.raises(UnsupportedOperationError, match="which of its maps are heads"):
        AttentionGradCam(Model(core)).attribute(x[:samples], 1)


def in_sets(model, x, cut):
    """Attends in sets that a function cuts out of tokens, with heads behind the sets."""
    q, k, v = (p.unflatten(-1, (HEADS, -1)) for p in cut(model.qkvs[0], x))
    return written_out(*(p.transpose(-3, -2) for p in (q, k, v))).transpose(-3, -2).reshape(x.shape)


def each_its_neighbours(x, windows):
    return F.pad(x, (0, 0, 1, 1)).unfold(1, WINDOW, windows).mT


def windows_of_projected(qkv, x):
    q, k, v = qkv(x).chunk(3, -1)
    return q.unsqueeze(2), each_its_neighbours(k, 1), each_its_neighbours(v, 1)


def projected_windows(qkv, x):
    k, v = qkv(each_its_neighbours(x, 1)).chunk(3, -1)[1:]
    return qkv(x).chunk(3, -1)[0].unsqueeze(2), k, v


def wide_windows(qkv, x):
    k, v = qkv(F.pad(x, (0, 0, 1, 1)).unfold(1, WINDOW + 2, WINDOW).mT).chunk(3, -1)[1:]
    return qkv(x).chunk(3, -1)[0].unflatten(1, (-1, WINDOW)), k, v


def rolled_windows(qkv, x):
    padded = F.pad(x, (0, 0, 0, WINDOW)).roll(1, 1)[:, :TOKENS]
    return qkv(padded.unflatten(1, (-1, WINDOW))).chunk(3, -1)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("pooling", ["row", "map", "open"])
@pytest.mark.parametrize("cut", [windows_of_projected, projected_windows, wide_windows])
def test_sets_with_keys_in_common_are_refused(cut, pooling, samples, x):
    model = Model(whole)
    model.attend = lambda x: in_sets(model, x, cut)
    with pytest.raises(UnsupportedOperationError, match="in more than one of them"):
        AttentionGradCam(model, pooling=pooling).attribute(x[:samples], 1)


@pytest.mark.parametrize("pooling", ["row", "map", "open"])
def test_windows_may_be_padded_and_rolled(pooling, x):
    model = Model(whole)
    model.attend = lambda x: in_sets(model, x, rolled_windows)
    assert AttentionGradCam(model, pooling=pooling).attribute(x, 1).abs().sum() > 0


@pytest.mark.parametrize("pooling", ["row", "map", "open"])
def test_samples_in_one_sequence_are_refused(pooling, x):
    with pytest.raises(UnsupportedOperationError, match="several samples"):
        AttentionGradCam(Packed(), pooling=pooling).attribute(x, 1)
    alone = AttentionGradCam(Model(whole), pooling=pooling).attribute(x[:1], 1)
    packed = AttentionGradCam(Packed(), pooling=pooling).attribute(x[:1], 1)
    torch.testing.assert_close(packed, alone)


@pytest.mark.parametrize("core", [in_front, in_front_by_einsum, merged_in_front, in_a_row])
def test_maps_and_heads_are_the_same_with_heads_in_front(core, x):
    for method in (RawAttention, AttnLRP, GenericAttentionRelevance):
        expected = method(Model(whole)).attribute_heads(x, 1)
        found = method(Model(core)).attribute_heads(x, 1)
        assert [tuple(of_call.shape) for of_call in found] == [(3, HEADS, TOKENS)] * 2
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        one_by_one = method(Model(core)).attribute_heads(x, 1, internal_batch_size=1)
        torch.testing.assert_close(one_by_one, expected, rtol=1e-4, atol=1e-5)
        tokens = method(Model(core)).attribute_tokens(x, 1)
        torch.testing.assert_close(
            tokens, method(Model(whole)).attribute_tokens(x, 1), rtol=1e-4, atol=1e-5
        )
    maps, of_whole = (
        RawAttention(Model(one)).relevance_maps(x, 1, average_heads=False) for one in (core, whole)
    )
    torch.testing.assert_close([*maps.values()], [*of_whole.values()])


@pytest.mark.parametrize("samples", [1, 3])
def test_maps_are_averaged_over_heads_and_not_over_windows(samples, x):
    def read(core):
        ((_, found),) = RawAttention(Model(core)).relevance_maps(x[:samples], 1).items()
        return found

    expected = read(windows_with_samples)
    assert expected.shape == (samples * TOKENS // WINDOW, WINDOW, WINDOW)
    for core in (windows_ahead, windows_behind, in_front_of_windows):
        torch.testing.assert_close(read(core), expected)
    for core in (neighbours, gathered, stacked, merged_with_windows):
        with pytest.raises(UnsupportedOperationError, match="which of its maps are heads"):
            read(core)


class ByHand(Model):
    """No operation shows which dimensions hold features, only those within a head."""

    def forward(self, x):
        for qkv in self.qkvs:
            parts = (x @ qkv.weight.T).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            x = x + self.core(*parts.unbind(0)).transpose(1, 2).flatten(2)
        return x[:, 0] @ self.head.weight.T


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("core", [whole, written_out, heads_with_samples, in_front])
def test_heads_are_not_taken_for_sets_of_tokens(core, samples, x):
    x, model = x[:samples], ByHand(core)
    for method in (AttnLRP, ConservativeLRP):
        with pytest.raises(UnsupportedOperationError, match="which"):
            method(model).attribute_heads(x, 1)
    with pytest.raises(UnsupportedOperationError, match="which"):
        RelevancePatching(model).attribute_heads(x + 1, x, 1)
