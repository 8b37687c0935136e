"""Which tokens an input was turned into by models that do more than embed patches."""

import pytest
import timm
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    BiLRP,
    ConservativeLRP,
    FullGradPlus,
    GenericAttentionRelevance,
    RawAttention,
)
from captum_transformer.errors import UnsupportedOperationError
from tests.attr.subjects import assert_close, subject
from tests.attr.tiny_models import drawn, images, with_random_weights

METHODS = (GenericAttentionRelevance, AttentionRollout, RawAttention)


def assert_patches_hold_their_pixels(model: nn.Module, method: type) -> None:
    """The 4 x 4 tokens of an image have the relevance of the 4 x 4 pixels below each of them."""
    explain = method(with_random_weights(model))
    given = drawn(2, 3, 16, 16, seed=1)

    pixels = explain.attribute(given, 1)
    patches = explain.attribute_tokens(given, 1)

    assert patches.shape == (2, 16)
    assert_close(patches, pixels.sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((3, 4)).flatten(1))


class Hybrid(nn.Module):
    """A convolutional stem, and attention with a skip around it and the projection before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.local = nn.Conv2d(8, 8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.merge = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.stem(pixels)
        tokens = self.layer(self.local(grid).flatten(2).transpose(1, 2))
        attended = tokens.transpose(1, 2).unflatten(2, grid.shape[2:])
        return self.head(self.merge(torch.cat([grid, attended], 1)).mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_branches_around_attention_count_for_their_tokens(method: type):
    assert_patches_hold_their_pixels(Hybrid(), method)


@pytest.mark.parametrize("method", METHODS)
def test_outlook_attention_has_the_tokens_of_its_values(method: type):
    model = timm.models.volo.VOLO(
        layers=[1, 1],
        img_size=32,
        num_classes=5,
        embed_dims=[16, 16],
        num_heads=[2, 2],
        stem_hidden_dim=8,
    )
    model = with_random_weights(model)
    given = drawn(2, 3, 32, 32, seed=1)

    pixels = method(model).attribute(given, 1)
    patches = method(model).attribute_tokens(given, 1)

    assert patches.shape == (2, 16)
    assert_close(patches.sum(1), pixels.sum((1, 2, 3)))


class CutPatches(nn.Module):
    """Patches are cut out by rearranging pixels, and then projected by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.embed = nn.LayerNorm(48), nn.Linear(48, 16)
        self.position = nn.Parameter(torch.zeros(1, 16, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = pixels.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 1, 3, 5)
        tokens = self.embed(self.norm(2 * patches.flatten(3).flatten(1, 2) - 1))
        return self.head(self.layer(tokens + self.position).mean(1))


@pytest.mark.parametrize("method", [*METHODS, ConservativeLRP])
def test_pixels_are_no_tokens_before_they_are_projected(method: type):
    assert_patches_hold_their_pixels(CutPatches(), method)


class MeanAsQuery(nn.Module):
    """As in CLIP's ResNets: the mean of all places attends to itself and to them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.pool = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        places = self.stem(pixels).flatten(2).mT
        tokens = torch.cat([places.mean(1, keepdim=True), places], 1)
        return self.head(self.pool(tokens[:, :1], tokens, tokens)[0][:, 0])


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_tokens_is_no_token(method: type):
    assert_patches_hold_their_pixels(MeanAsQuery(), method)


def test_an_image_that_becomes_tokens_twice_is_refused():
    given = subject("timm ViT")

    def mirrored(pixels: Tensor) -> Tensor:
        return given.model(pixels) + given.model(pixels.flip(3))

    with pytest.raises(UnsupportedOperationError, match=r"more than once.* Use `attribute`"):
        GenericAttentionRelevance(mirrored).attribute_tokens(images(), 1)


conv, depthwise = (nn.Conv1d(8, 8, 3, padding=1, groups=g).double() for g in (1, 8))
AMONG_NEIGHBOURS = {
    "convolution": lambda x: conv(x.mT).mT,
    "with a skip": lambda x: x + conv(x.mT).mT,
    "two": lambda x: conv(depthwise(x.mT).relu()).mT,
    "dilated": lambda x: nn.functional.conv1d(x.mT, conv.weight, dilation=2, padding=2).mT,
    "pooling": lambda x: nn.functional.avg_pool1d(x.mT, 3, 1, 1).mT,
}


@pytest.mark.parametrize("method", [*METHODS, AttnLRP, ConservativeLRP])
@pytest.mark.parametrize("mix", AMONG_NEIGHBOURS.values(), ids=AMONG_NEIGHBOURS)
def test_tokens_that_take_up_their_neighbours_are_the_same_tokens(mix, method: type):
    table = nn.Embedding(10, 8).double()
    model = with_random_weights(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)).double()
    into = nn.Linear(8, 8).double()
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 1, 1, 9]])

    def scores(x: Tensor) -> Tensor:
        return model(into(mix(x)))[:, 0]

    of_ids = method(lambda ids: scores(table(ids))).attribute_tokens(ids, 1)
    explain, x = method(scores), table(ids).detach()
    assert_close(explain.attribute_tokens(x, 1), of_ids)
    assert_close(explain.attribute(x, 1).sum(-1), of_ids)


class Streams(nn.Module):
    """A block with hyper-connections, whose streams are read as one in some notation."""

    def __init__(self, read) -> None:
        super().__init__()
        self.read, self.weights = read, drawn(2, seed=3).double()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def forward(self, streams: Tensor) -> Tensor:
        out = self.block(self.read(streams, self.weights))
        mixed = torch.einsum("st,bsnd->btnd", drawn(2, 2, seed=4).double(), streams)
        return mixed + self.weights[:, None, None] * out[:, None]


class Connected(nn.Module):
    def __init__(self, read, embed: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Streams(read), Streams(read)])
        self.embed = embed
        self.of_pixels, self.of_features = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        if self.embed == "pixels":
            x = self.of_pixels(x).flatten(2).mT
        if self.embed == "layers":
            streams = self.of_features(x).unflatten(-1, (2, 8)).transpose(1, 2)
        else:
            streams = x[:, None] * torch.tensor([1.0, 0.5]).to(x)[:, None, None]
        for block in self.blocks:
            streams = block(streams)
        return streams.sum(1).mean(1)


READ = {
    "einsum": lambda streams, weights: torch.einsum("s,bsnd->bnd", weights, streams),
    "sum": lambda streams, weights: (streams * weights[:, None, None]).sum(1),
    "in parts": lambda streams, weights: streams[:, 0] * weights[0] + streams[:, 1] * weights[1],
}


@pytest.mark.parametrize("embed", ["pixels", "layers", "none"])
def test_streams_of_tokens_are_no_tokens(embed: str):
    x = (drawn(2, 3, 4, 6, seed=2) if embed == "pixels" else drawn(2, 6, 8, seed=2)).double()
    models = [with_random_weights(Connected(read, embed)).double() for read in READ.values()]

    def full(model):
        return FullGradPlus(model, layers=["blocks.0", "blocks.1"])

    for method in (GenericAttentionRelevance, RawAttention, ConservativeLRP, full):
        expected, *found = (method(model).attribute_tokens(x, 1) for model in models)
        assert expected.shape == (2, 6)
        for other in found:
            assert_close(other, expected)
    expected, *found = (BiLRP(model).attribute(x, x.flip(0)) for model in models)
    assert expected.shape == (2, 6, 6)
    for other in found:
        assert_close(other, expected)
