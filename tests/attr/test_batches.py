"""A sample's attribution depends on nothing but the sample."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
)
from tests.attr.subjects import (
    FLOW_METHODS,
    METHODS,
    SUBJECTS,
    as_tuple,
    assert_close,
    attributed,
    shared_out,
    subject,
)
from tests.attr.tiny_models import (
    CLASSES,
    IMAGE,
    LENGTHS,
    bert,
    drawn,
    encoder,
    ids,
    images,
    with_random_weights,
)

# Scaled by the whole map in which padding tokens have rows of their own, as in the authors' code.
UNPADDABLE = "AttentionGradCam, map"


@pytest.mark.parametrize(("name", "method"), shared_out(SUBJECTS))
def test_batch_equals_one_by_one(name: str, method: str) -> None:
    alone = as_tuple(subject(name).samples([2]).attribute(METHODS[method]))

    assert_close(alone, tuple(a[[2]] for a in attributed(name, method)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm Swin", "BERT", "pixels and ids"])
def test_order_of_samples_does_not_matter(name: str, method: str) -> None:
    shuffled = as_tuple(subject(name).samples([2, 0, 1, 0]).attribute(METHODS[method]))

    assert_close(shuffled, tuple(a[[2, 0, 1, 0]] for a in attributed(name, method)))


@pytest.mark.parametrize("method", [m for m in METHODS if m != UNPADDABLE])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_text_equals_unpadded(attention: str, method: str) -> None:
    name = "BERT" if attention == "sdpa" else "BERT, eager"
    (padded,) = attributed(name, method)
    for i, length in enumerate(LENGTHS):
        whole = METHODS[method](bert(attention)).attribute(ids()[i : i + 1, :length], [1, 4, 0][i])

        assert_close(padded[i : i + 1, :length], whole)


@pytest.mark.parametrize("method", [m for m in METHODS if m != UNPADDABLE])
@pytest.mark.parametrize("norm_first", [False, True])
def test_padded_embeddings_equal_unpadded(norm_first: bool, method: str) -> None:
    name = "nn.TransformerEncoder, norm first" if norm_first else "nn.TransformerEncoder"
    (padded,) = attributed(name, method)
    inputs = subject(name).inputs
    for i, length in enumerate(LENGTHS):
        whole = METHODS[method](encoder(norm_first=norm_first)).attribute(
            inputs[i : i + 1, :length], [1, 4, 0][i]
        )

        assert_close(padded[i : i + 1, :length], whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["BERT", "BERT, eager", "nn.TransformerEncoder"])
def test_padding_has_no_relevance(name: str, method: str) -> None:
    (attribution,) = attributed(name, method)

    for i, length in enumerate(LENGTHS):
        assert not attribution[i, length:].any()
    assert attribution.any()


@pytest.mark.parametrize("method", [m for m in METHODS if m != UNPADDABLE])
def test_values_of_padding_do_not_matter(method: str) -> None:
    given = subject("BERT")
    kept = given.extra[0]
    other = torch.where(kept > 0, given.inputs, 29)

    result = METHODS[method](given.model).attribute(other, given.target, given.extra)

    assert_close(result, attributed("BERT", method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm ViT", "BERT", "pixels and ids"])
def test_several_targets_equal_separate_calls(name: str, method: str) -> None:
    given = subject(name)
    targets = [[1, 4, 0], 2, torch.tensor([3, 3, 1])]

    together = METHODS[method](given.model).attribute_targets(given.inputs, targets, given.extra)

    assert len(together) == len(targets)
    for target, result in zip(targets, together, strict=True):
        assert isinstance(result, tuple) == isinstance(given.inputs, tuple)
        assert_close(result, given.attribute(METHODS[method], target=target), relative=0)


def test_several_targets_run_the_model_once() -> None:
    given, runs = subject("timm ViT"), []

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        runs.append(len(pixels))
        return given.model(pixels)

    METHODS["TransformerAttribution"](counted).attribute_targets(given.inputs, [0, 1, 2, 3, 4])

    assert runs == [3]


@pytest.mark.parametrize("method", FLOW_METHODS)
def test_large_batch_of_tiny_values_stays_exact(method: str) -> None:
    given = subject("timm ViT")
    pixels = 1e-6 * drawn(5, *given.inputs.shape[1:], seed=9)
    together = METHODS[method](given.model).attribute(pixels, 2)

    assert_close(together[3:4], METHODS[method](given.model).attribute(pixels[3:4], 2))


def test_class_agnostic_method_needs_no_target() -> None:
    given = subject("timm ViT")
    without = AttentionRollout(given.model).attribute(given.inputs)

    assert_close(without, attributed("timm ViT", "AttentionRollout"))


class WithConvolutions(nn.Module):
    """Patches from a convolution with batch normalisation, as in XCiT or LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4, bias=False), nn.BatchNorm2d(16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.stem(pixels).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_one_sample_behind_a_batch_norm_gets_its_own_relevance(method: str) -> None:
    model, pixels = with_random_weights(WithConvolutions()), images(2)
    if "layer 1" in method:
        pytest.skip("the model has one layer")
    explain = METHODS[method](model)
    both = explain.attribute(pixels, [1, 4])
    alone = [explain.attribute(pixels[i : i + 1], [c]) for i, c in enumerate((1, 4))]
    assert_close(torch.cat(alone), both)


class Spectrogram(nn.Module):
    """Frequencies are normalised as channels, the last axis of the input, as in CLAP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project = nn.BatchNorm2d(8), nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, spectrogram: Tensor) -> Tensor:
        norm = self.norm
        normed = norm(spectrogram.transpose(1, 3)).transpose(1, 3)
        if self.by_hand:
            slope = norm.weight / (norm.running_var + norm.eps).sqrt()
            normed = spectrogram * slope + (norm.bias - norm.running_mean * slope)
        tokens = self.project(normed.contiguous().flatten(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("method", [ConservativeLRP, AttnLRP, GenericAttentionRelevance])
def test_a_batch_norm_of_the_last_dimension_equals_a_product(method: type) -> None:
    model, sounds = with_random_weights(Spectrogram()), drawn(2, 1, 12, 8, seed=3)
    model.by_hand = False
    found = method(model).attribute(sounds, [1, 4])
    model.by_hand = True
    assert_close(found, method(model).attribute(sounds, [1, 4]))


@pytest.mark.parametrize("method", METHODS)
def test_a_block_that_no_sample_is_routed_to(method: str) -> None:
    """As in mixture of depths: what runs on no samples adds nothing."""
    given = subject("timm ViT")
    block = nn.Sequential(nn.LayerNorm(CLASSES), nn.Linear(CLASSES, CLASSES)).double()

    def routed(images: Tensor, *, to_block: bool) -> Tensor:
        scores = given.model(images)
        out = scores * 1.0
        if to_block:
            chosen = scores[:, 0] > 1e9
            out[chosen] = block(scores[chosen])
        return out

    explain = [METHODS[method](partial(routed, to_block=to_block)) for to_block in (False, True)]
    assert_close(*(method.attribute(given.inputs, 1) for method in explain), 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_memory_that_held_no_numbers(method: str) -> None:
    """``torch.empty`` gives memory in which anything may stand."""
    given = subject("timm ViT")

    def written(images: Tensor, *, memory: float) -> Tensor:
        whole = torch.full_like(images, memory)
        whole[:, :, : IMAGE[0] // 2] = images[:, :, : IMAGE[0] // 2]
        whole[:, :, IMAGE[0] // 2 :] = images[:, :, IMAGE[0] // 2 :]
        return given.model(whole)

    explain = [METHODS[method](partial(written, memory=memory)) for memory in (0.0, torch.nan)]
    assert_close(*(method.attribute(given.inputs, 1) for method in explain), 1e-6)
