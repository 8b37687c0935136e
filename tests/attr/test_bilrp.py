"""Which pairs of tokens make two inputs similar."""

from functools import partial

import pytest
import torch
import transformers
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    BiLRP,
    ConservativeLRP,
    FullGradPlus,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.errors import (
    AmbiguousOutputError,
    InvalidInputError,
    UnsupportedOperationError,
)
from tests.attr.planted import FEATURES, HandSetAttention, Head, tokens
from tests.attr.snapshots import unchanged

WIDTH = 16


class Encoder(nn.Module):
    """An encoder without biases and positions, so that the tokens get all relevance."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 32, dropout=0.0, bias=False, batch_first=True, activation="relu"
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        there = torch.ones_like(x[..., 0]) if mask is None else mask.to(x.dtype)
        hidden = self.layers(x, src_key_padding_mask=None if mask is None else ~mask)
        return self.head((hidden * there.unsqueeze(2)).sum(1) / there.sum(1, keepdim=True))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().double().eval()


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 5, WIDTH).double(), torch.randn(3, 4, WIDTH).double()


@pytest.mark.parametrize("rank", [None, 6, WIDTH, 100])
def test_relevance_sums_to_the_similarity(encoder, pair, rank) -> None:
    one, other = pair
    embeddings = encoder(one), encoder(other)

    dot = BiLRP(encoder, rank=rank).explain(one, other)
    cosine = BiLRP(encoder, rank=rank, normalize=True).explain(one, other)

    assert dot.relevance.shape == (3, 5, 4)
    torch.testing.assert_close(dot.similarity, (embeddings[0] * embeddings[1]).sum(1))
    torch.testing.assert_close(cosine.similarity, torch.cosine_similarity(*embeddings))
    assert dot.delta.abs().max() < 1e-9
    assert cosine.delta.abs().max() < 1e-9


def test_cosine_equals_a_model_with_unit_embeddings(encoder, pair) -> None:
    def unit(x: Tensor) -> Tensor:
        return nn.functional.normalize(encoder(x))

    torch.testing.assert_close(
        BiLRP(unit).attribute(*pair), BiLRP(encoder, normalize=True).attribute(*pair)
    )


@pytest.mark.parametrize("method", [AttnLRP, ConservativeLRP])
def test_relevance_is_the_sum_of_products_over_dimensions(encoder, pair, method) -> None:
    other = Encoder().double().eval()

    actual = BiLRP(encoder, other, method=method).attribute(*pair)

    sides = [
        torch.stack(method(tower).attribute_targets(x, range(WIDTH)), 1).sum(-1)
        for tower, x in zip((encoder, other), pair, strict=True)
    ]
    torch.testing.assert_close(actual, torch.einsum("ski,skj->sij", *sides))


def test_the_standard_error_is_the_error_of_estimates(encoder, pair) -> None:
    one, other = (x[:1] for x in pair)
    exact = BiLRP(encoder).explain(one, other)
    assert not exact.standard_error.any()

    draws = 600
    drawn = BiLRP(encoder, rank=7).explain(
        *(x.expand(draws, -1, -1) for x in (one, other)), internal_batch_size=200
    )

    errors = drawn.relevance - exact.relevance
    found = errors.square().mean(0).sqrt()
    stated = drawn.standard_error.square().mean(0).sqrt()
    # Estimates are unbiased: their mean is within four of its own standard errors.
    assert (errors.mean(0).abs() < 4 * found / draws**0.5).all()
    torch.testing.assert_close(stated, found, rtol=0.15, atol=0.0)


def test_directions_come_from_the_given_generator(encoder, pair) -> None:
    before = torch.get_rng_state()
    estimates = [
        BiLRP(encoder, rank=5, generator=torch.Generator().manual_seed(seed)).attribute(*pair)
        for seed in (3, 3, 4)
    ]
    default = [BiLRP(encoder, rank=5).attribute(*pair) for _ in range(2)]

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(estimates[0], estimates[1])
    assert not torch.equal(estimates[0], estimates[2])
    assert torch.equal(*default)


@pytest.mark.parametrize("rank", [None, 5])
def test_an_input_that_is_compared_with_itself(encoder, pair, rank) -> None:
    pairs = BiLRP(encoder, rank=rank, normalize=True).explain(pair[0], pair[0])

    assert pairs.relevance.isfinite().all()
    torch.testing.assert_close(pairs.relevance.sum((1, 2)), torch.ones(3).double())
    if rank is None:
        torch.testing.assert_close(pairs.relevance, pairs.relevance.mT)


def test_an_embedding_of_zero_is_similar_to_nothing(encoder, pair) -> None:
    pairs = BiLRP(lambda x: encoder(x) * 0.0, encoder, normalize=True, rank=5).explain(*pair)

    assert not pairs.similarity.any()
    assert not pairs.relevance.any()


def test_padding_has_no_relevance_and_no_effect(encoder, pair) -> None:
    one, other = pair
    masks = [torch.ones(x.shape[:2], dtype=torch.bool) for x in pair]
    masks[0][1, 3:], masks[1][1, 2:] = False, False
    method = BiLRP(encoder)

    by_position = method.attribute(one, other, *masks)
    by_name = method.attribute(
        {"x": one},
        {"x": other},
        additional_forward_kwargs={"mask": masks[0]},
        other_forward_kwargs={"mask": masks[1]},
    )

    assert torch.equal(by_position, by_name)
    assert not by_position[1, 3:].any()
    assert not by_position[1, :, 2:].any()
    torch.testing.assert_close(
        by_position[1:2, :3, :2], method.attribute(one[1:2, :3], other[1:2, :2])
    )


def test_a_few_pairs_at_a_time(encoder, pair) -> None:
    masks = [torch.ones(x.shape[:2], dtype=torch.bool) for x in pair]
    masks[0][2, 1:] = False
    method = BiLRP(encoder)

    torch.testing.assert_close(
        method.attribute(*pair, *masks, internal_batch_size=2), method.attribute(*pair, *masks)
    )


def test_patches_and_words_of_two_towers() -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    layers = {"num_hidden_layers": 2, "projection_dim": 8}
    text = transformers.CLIPTextConfig(
        vocab_size=20, bos_token_id=1, eos_token_id=2, **size, **layers
    )
    vision = transformers.CLIPVisionConfig(image_size=16, patch_size=8, **size, **layers)
    words = transformers.CLIPTextModelWithProjection(text).eval()
    patches = transformers.CLIPVisionModelWithProjection(vision).eval()
    images, ids = torch.rand(2, 3, 16, 16), torch.tensor([[1, 5, 6, 2], [1, 7, 2, 2]])

    pairs = BiLRP(
        lambda x: patches(x).image_embeds, lambda x: words(x).text_embeds, normalize=True
    ).explain(images, ids)

    assert pairs.relevance.shape == (2, 4, 4)
    embeddings = patches(images).image_embeds, words(ids).text_embeds
    torch.testing.assert_close(pairs.similarity, torch.cosine_similarity(*embeddings))
    # Tokens after the end of a text are not read.
    assert not pairs.relevance[1, :, 3].any()
    assert pairs.relevance[1, :, :3].any()


class Planted(nn.Module):
    """An embedding of two features: the evidence of marked tokens, and one that nothing writes."""

    def __init__(self) -> None:
        super().__init__()
        # The class token attends to marked tokens and copies their evidence.
        self.attention = HandSetAttention([Head("cls", "mark_a", 40.0, "evidence_a", "carried")])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = x + self.attention(x)
        chosen = [FEATURES.index(name) for name in ("carried", "relay")]
        return hidden[:, 0, chosen]


def test_a_planted_pair_of_words_has_all_relevance() -> None:
    one = tokens({"cls": 1}, {"evidence_a": 5}, {"mark_a": 1, "evidence_a": 2}, {})
    other = tokens({"cls": 1}, {"mark_a": 1, "evidence_a": 3}, {"evidence_a": 9})

    pairs = BiLRP(Planted()).explain(one, other)

    expected = torch.zeros(1, 4, 3).double()
    expected[0, 2, 1] = 6.0
    torch.testing.assert_close(pairs.relevance, expected)
    torch.testing.assert_close(pairs.similarity, torch.tensor([6.0]).double())


@pytest.mark.parametrize(
    "method",
    [GenericAttentionRelevance, partial(TransformerAttribution, propagate_to_input=True)],
)
def test_methods_that_are_not_linear_are_refused(encoder, method) -> None:
    with pytest.raises(UnsupportedOperationError, match="linear in its value"):
        BiLRP(encoder, method=method)


def test_outputs_that_are_not_embeddings_are_refused(encoder, pair) -> None:
    one, other = pair
    with pytest.raises(AmbiguousOutputError, match=r"For `inputs` .* shape \(3, 5, 16\)"):
        BiLRP(encoder.layers, encoder).attribute(one, other)
    with pytest.raises(AmbiguousOutputError, match=r"For `other_inputs` .* dict of 'pooled'"):
        BiLRP(encoder, lambda x: {"pooled": encoder(x)}).attribute(one, other)
    with pytest.raises(AmbiguousOutputError, match=r"shape \(3,\)"):
        BiLRP(lambda x: encoder(x)[:, 0]).attribute(one, other)


def test_inputs_that_do_not_pair_are_refused(encoder, pair) -> None:
    one, other = pair
    narrow = Encoder(width=6).double().eval()
    with pytest.raises(InvalidInputError, match=r"has 16 dimensions .* `other_inputs` 6"):
        BiLRP(encoder, narrow).attribute(one, other)
    with pytest.raises(InvalidInputError, match="holds 1 samples and `other_inputs` 3"):
        BiLRP(encoder).attribute(one[:1], other)
    with pytest.raises(InvalidInputError, match="`other_inputs` holds 2 tensors"):
        BiLRP(encoder).attribute((one,), (other, other))
    with pytest.raises(ValueError, match="at least 4"):
        BiLRP(encoder, rank=3)


def test_nothing_changes(encoder, pair) -> None:
    with unchanged(encoder.train(), *pair):
        BiLRP(encoder).attribute(*pair)


def test_a_trained_encoder_compares_the_named_things() -> None:
    """Two sentences are similar if they name the same one of four things, by any of its names."""
    names, fillers, length = 12, 15, 7
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=1 + names + fillers,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertModel(config, add_pooling_layer=False)

    def sentences(about: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.randint(1 + names, config.vocab_size, (len(about), length))
        places = torch.randint(length, (len(about), 1))
        named = 1 + 3 * about + torch.randint(3, about.shape)
        return ids.scatter(1, places, named.unsqueeze(1)), places.squeeze(1)

    def embedding(ids: Tensor) -> Tensor:
        return model(ids).last_hidden_state.mean(1)

    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        about = torch.randint(4, (64,))
        one, other = (nn.functional.normalize(embedding(sentences(about)[0])) for _ in range(2))
        same = (about.unsqueeze(1) == about).float()
        nn.functional.mse_loss(one @ other.T, same).backward()
        optimizer.step()
        optimizer.zero_grad()
    about = torch.randint(4, (60,))
    (one, here), (other, there) = (sentences(about) for _ in range(2))

    pairs = BiLRP(embedding, normalize=True).explain(one, other)

    assert pairs.similarity.median() > 0.9
    strongest = pairs.relevance.flatten(1).argmax(1)
    assert (strongest == length * here + there).float().mean() >= 0.95


def test_a_method_that_sums_over_layers_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    with pytest.raises(UnsupportedOperationError, match="makes a FullGradPlus, which adds up"):
        BiLRP(model, method=partial(FullGradPlus, layers=["0", "1"]))
