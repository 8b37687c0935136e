"""Branches that the score doesn't depend on change nothing."""

import warnings
from functools import partial

import pytest
import torch
import transformers
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import InvalidInputError, NoAttentionError
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import drawn, embeddings, encoder, with_random_weights


class TwoTowers(nn.Module):
    """An image and a text that are compared; a caption may be written beside."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.text = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
        self.beside: str = ""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        pixels, (image, text) = image, (self.image(image), self.text(text))
        self.captions(image, text)
        if self.beside == "loss":
            (text[:, :1] * pixels - image).square().mean()
        return (image[:, 0] * text[:, 0]).sum(-1)

    def captions(self, image: Tensor, text: Tensor) -> None:
        if self.beside == "caption":
            self.decoder(text[:, 1:], image)


def pair() -> tuple[Tensor, Tensor]:
    return drawn(2, 6, 16), drawn(2, 4, 16)


@pytest.mark.parametrize("beside", ["caption", "loss"])
@pytest.mark.parametrize("method", [name for name in METHODS if "layer 1" not in name])
def test_a_branch_beside_the_score_changes_nothing(method: str, beside: str) -> None:
    model = with_random_weights(TwoTowers())
    explain = METHODS[method](model)
    expected = explain.attribute(pair()), explain.attribute_tokens(pair())

    model.beside = beside
    found = explain.attribute(pair()), explain.attribute_tokens(pair())

    for alone, together in zip(expected, found, strict=True):
        assert_close(together, alone, relative=0)


@pytest.mark.parametrize("method", ["GenericAttentionRelevance", "full LRP", "ConservativeLRP"])
def test_the_loss_of_a_masked_autoencoder(method: str) -> None:
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        mask_ratio=0.0,
    )
    model = transformers.ViTMAEForPreTraining(config).double().eval()
    images = {"pixel_values": drawn(2, 3, 32, 32)}
    explain = METHODS[method](model)

    maps = explain.attribute(images, (3, 5))["pixel_values"]
    tokens = explain.attribute_tokens(images, (3, 5))["pixel_values"]

    patches = maps.unfold(2, 8, 8).unfold(3, 8, 8).sum((1, 4, 5)).flatten(1)
    assert_close(tokens, patches)


class Beside(nn.Module):
    """Something of its own beside an encoder, which the score may be read from instead."""

    def __init__(self, other: str, *, read: bool = False) -> None:
        super().__init__()
        self.encoder, self.other, self.read = encoder(), other, read
        self.mix = nn.Linear(16, 16).double()

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.mix(tokens)
        if self.other == "linear attention":
            mixed = mixed.relu() @ (mixed.relu().mT @ tokens)
        elif self.other == "channels":
            mixed = tokens @ torch.softmax(mixed.mT @ mixed, -1)
        elif self.other == "cross-attention":
            mixed = torch.softmax(tokens[:, :1] @ mixed.mT, -1) @ mixed
        scores, others = self.encoder(tokens), mixed.mean(1)
        return others if self.read else scores


@pytest.mark.parametrize("other", ["linear", "linear attention", "channels", "cross-attention"])
@pytest.mark.parametrize(
    "method", [GenericAttentionRelevance, TransformerAttribution, RawAttention, AttnLRP]
)
def test_branches_beside_the_score_do_not_warn(method: type, other: str) -> None:
    model = Beside(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = method(model).attribute(embeddings(), 1)
    assert_close(found, method(model.encoder).attribute(embeddings(), 1))


@pytest.mark.parametrize(
    "method", [GenericAttentionRelevance, ConservativeLRP, AttnLRP, AttentionRollout]
)
def test_attention_beside_a_score_that_depends_on_none_is_said(method: type) -> None:
    with pytest.raises(NoAttentionError, match="although the forward pass has some"):
        method(Beside("linear", read=True)).attribute(embeddings(), 7)


class Several(nn.Module):
    """Takes three inputs, of which each of its scores depends on some."""

    def __init__(self, read: int) -> None:
        super().__init__()
        self.encoder, self.words, self.read = encoder(), nn.Embedding(9, 16).double(), read

    def forward(self, tokens: Tensor, ids: Tensor, scale: Tensor) -> Tensor:
        embedded = tokens + self.words(ids)
        scores = (
            self.encoder(embedded),
            self.encoder(tokens) * scale,
            self.encoder(embedded.detach()) * scale.detach(),
        )
        return scores[self.read]


EXPLAINING = {
    # Of a scale there is nothing else.
    "with identity": partial(GenericAttentionRelevance, with_identity=True),
    "full LRP": METHODS["full LRP"],
    "AttnLRP": METHODS["AttnLRP"],
}


@pytest.mark.parametrize("method", EXPLAINING)
@pytest.mark.parametrize(
    ("read", "unused"), [(0, "'scale'"), (1, "'ids'"), (2, "any of the inputs")]
)
def test_an_input_that_the_score_does_not_depend_on_is_named(
    method: str, read: int, unused: str
) -> None:
    inputs = {
        "tokens": embeddings(),
        "ids": torch.tensor([[1, 2, 3, 4, 5, 6, 7]]).expand(3, -1),
        "scale": drawn(3, 5),
    }
    explain = EXPLAINING[method](Several(read))

    with pytest.raises(InvalidInputError, match=unused):
        explain.attribute(inputs, 1)
    further = {name: inputs.pop(name) for name in list(inputs) if f"'{name}'" == unused}
    if further:
        found = explain.attribute(inputs, 1, additional_forward_kwargs=further)
        assert all(relevance.any() for relevance in found.values())


def test_tokens_that_do_not_affect_the_score_have_no_relevance() -> None:
    def of_some(tokens: Tensor) -> Tensor:
        return encoder()(tokens[:, :3])

    found = GenericAttentionRelevance(of_some).attribute_tokens(embeddings(), 1)

    assert found[:, :3].all()
    assert not found[:, 3:].any()


@pytest.mark.parametrize("method", METHODS)
def test_ids_of_several_choices_keep_their_shape(method: str) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
    )
    model = with_random_weights(transformers.BertForMultipleChoice(config))
    ids = torch.randint(3, 50, (2, 3, 5))
    explain = METHODS[method](model)

    found = explain.attribute_tokens(ids, 1)

    assert found.shape == (2, 3, 5)
    assert_close(found, explain.attribute(ids, 1))
    # Choices are read apart, so those that are not chosen have no part in the score.
    assert found[:, 1].any()
    assert not found[:, [0, 2]].any()

    def of_one(ids: Tensor) -> Tensor:
        return model(ids[:, None]).logits

    assert_close(found[:, 1], METHODS[method](of_one).attribute(ids[:, 1], 0))
