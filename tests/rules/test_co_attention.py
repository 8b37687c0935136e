"""The matrix rules for several streams, against matrices multiplied by hand."""

import pytest
import torch
from torch import Tensor

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.attr.relevance_map import relevance_map
from captum_transformer.calling import Arguments
from captum_transformer.trace import traced_forward
from captum_transformer.trace.heads import by_head
from tests.attr.golden import load_case
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import with_random_weights
from tests.rules.streams import Placed, Translator, given, normalized, weighted_attention

ROLLED_OUT = (GenericAttentionRelevance, TransformerAttribution, AttentionRollout)


@pytest.mark.parametrize("kind", [Translator, Placed])
@pytest.mark.parametrize("normalize", [True, False])
def test_encoder_and_decoder_by_hand(normalize: bool, kind: type):
    model, inputs, target = given(kind)
    one, two, own_1, cross_1, own_2, cross_2 = weighted_attention(model, inputs, target)
    n = normalized if normalize else lambda matrix: matrix
    source = torch.eye(6) + one
    source = source + two @ source
    words, mixed = torch.eye(4) + own_1, torch.zeros(3, 4, 6)
    mixed = mixed + n(words).mT @ cross_1 @ n(source)
    words, mixed = words + own_2 @ words, mixed + own_2 @ mixed
    mixed = mixed + n(words).mT @ cross_2 @ n(source)

    for with_identity in (False, True):
        method = GenericAttentionRelevance(model, normalize=normalize, with_identity=with_identity)
        maps = method.relevance_maps(inputs, target)
        of_source, of_words = method.attribute_tokens(inputs, target)

        left_out = 0 if with_identity else 1
        own = words - left_out * torch.eye(4)
        assert_close(maps["words", "source"], mixed)
        assert_close(maps["words", "words"], own)
        assert_close(maps["source", "source"], source - left_out * torch.eye(6))
        assert_close(of_source, mixed[:, target[0]])
        assert_close(of_words, own[:, target[0]])


def test_rows_divided_by_their_sums():
    relevance = torch.tensor([[[1.0, 0.0, 0.0], [0.2, 1.2, 0.4], [0.0, 3.0, 2.0]]])

    expected = torch.tensor([[[1.0, 0, 0], [0.25, 1.25, 0.5], [0, 0.75, 1.25]]])
    assert torch.allclose(normalized(relevance), expected)


def test_first_layers_can_be_left_out():
    model, inputs, target = given()
    _, two, _, _, own_2, cross_2 = weighted_attention(model, inputs, target)
    source, words = torch.eye(6) + two, torch.eye(4, dtype=torch.float64)
    mixed = normalized(words).mT @ cross_2 @ normalized(source)

    # Counted from the last: one call of the encoder, and the decoder's last cross-attention.
    method = GenericAttentionRelevance(model, start_layer=-1)
    maps = method.relevance_maps(inputs, target)
    assert_close(maps["words", "source"], mixed.expand(3, -1, -1))
    assert own_2.any()
    assert not maps["words", "words"].any()
    of_source, of_words = method.attribute_tokens(inputs, target)
    assert_close(of_source, mixed.expand(3, -1, -1)[:, target[0]])
    assert not of_words.any()

    method = GenericAttentionRelevance(model, start_layer=-1, with_identity=True)
    maps = method.relevance_maps(inputs, target)
    assert_close(maps["words", "words"], words.expand(3, -1, -1))
    of_source, of_words = method.attribute_tokens(inputs, target)
    assert_close(of_source, mixed.expand(3, -1, -1)[:, target[0]])
    assert_close(of_words, words.expand(3, -1, -1)[:, target[0]])


def test_transformer_attribution_weights_relevance_instead_of_attention():
    model, inputs, target = given()
    method = TransformerAttribution(model)
    with method._traced(Arguments(inputs)) as forward:
        question = method._selection(forward, target, ())
        blocks = relevance_map(question, forward.calls, weighted=True)
        one, two, *decoder = (
            by_head(call, blocks(call, slice(None))).mean(1).detach() for call in forward.calls
        )
    own_1, cross_1, own_2, cross_2 = decoder
    source = torch.eye(6) + one
    source = source + two @ source
    words = torch.eye(4) + own_1
    mixed = normalized(words).mT @ cross_1 @ normalized(source)
    words, mixed = words + own_2 @ words, mixed + own_2 @ mixed
    mixed = mixed + normalized(words).mT @ cross_2 @ normalized(source)

    of_source, of_words = method.attribute_tokens(inputs, target)

    assert_close(of_source, mixed[:, target[0]])
    assert_close(of_words, (words - torch.eye(4))[:, target[0]])


def test_streams_that_attend_to_each_other_before_to_themselves():
    class CoAttention(Translator):
        def forward(self, source: Tensor, words: Tensor) -> Tensor:
            one, two = self.encoder
            source, words = source + one(source, words), words + two(words, source)
            return self.head(words + self.cross(words, source))

    model = with_random_weights(CoAttention())
    _, inputs, target = given()
    score = model(*inputs)[(slice(None), *target)].sum()
    kept = [p for module in (*model.encoder, model.cross) for p in module.probabilities]
    gradients = torch.autograd.grad(score, kept)
    to_words, to_source, cross = (
        (g * p).relu().mean(1).detach() for g, p in zip(gradients, kept, strict=True)
    )

    maps = GenericAttentionRelevance(model).relevance_maps(inputs, target)

    assert_close(maps["words", "source"], to_source + cross)
    assert_close(maps["words", "words"], cross @ to_words)


def test_parallel_branches_add_up():
    class Parallel(Translator):
        def forward(self, source: Tensor, words: Tensor) -> Tensor:
            one, two = self.encoder
            source = source + one(source, source) + two(source, source)
            return self.head(words + self.cross(words, source))

    model = with_random_weights(Parallel())
    _, inputs, target = given()
    modules = [*model.encoder, model.cross]
    score = model(*inputs)[(slice(None), *target)].sum()
    kept = [p for module in modules for p in module.probabilities]
    gradients = torch.autograd.grad(score, kept)
    one, two, cross = (
        (g * p).relu().mean(1).detach() for g, p in zip(gradients, kept, strict=True)
    )

    maps = GenericAttentionRelevance(model).relevance_maps(inputs, target)

    assert_close(maps["words", "source"], cross @ normalized(torch.eye(6) + one + two))


@pytest.mark.parametrize("method", [*ROLLED_OUT, RawAttention])
def test_padded_words_have_no_effect(method: type):
    case = load_case("lxmert_iccv21")
    (ids, regions), (boxes, mask, types) = case.inputs, case.extra
    kept = 5
    padded = mask.clone()
    padded[:, kept:] = 0

    whole = method(case.model).attribute_tokens((ids, regions), 1, (boxes, padded, types))
    short = method(case.model).attribute_tokens(
        (ids[:, :kept], regions), 1, (boxes, mask[:, :kept], types[:, :kept])
    )

    assert not whole[0][:, kept:].any()
    assert_close((whole[0][:, :kept], whole[1]), short, 1e-6)


def test_batch_equals_one_by_one():
    model, inputs, target = given()
    whole = GenericAttentionRelevance(model).attribute(inputs, target)
    for i in range(3):
        alone = GenericAttentionRelevance(model).attribute(
            tuple(tensor[i : i + 1] for tensor in inputs), target
        )
        assert_close(tuple(part[i : i + 1] for part in whole), alone)


def test_nothing_is_kept_of_the_forward_pass():
    model, inputs, _ = given()
    with traced_forward(model, Arguments(inputs)) as forward:
        assert forward.whole.streams.cross_attention
    assert not forward.tape.operations
