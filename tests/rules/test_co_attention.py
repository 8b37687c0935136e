"""The matrix rules for several streams, against matrices multiplied by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.attr.transformer_attribution import relevance_map
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.streams import update
from captum_transformer.trace import traced_forward
from captum_transformer.trace.heads import by_head
from tests.attr.golden import load_case
from tests.attr.subjects import SUBJECTS, assert_close, subject
from tests.attr.tiny_models import drawn, with_random_weights

ROLLED_OUT = (GenericAttentionRelevance, TransformerAttribution, AttentionRollout)
WIDTH, HEADS = 16, 2


def normalized(relevance: Tensor) -> Tensor:
    """Eq. 8, 9 of the paper."""
    return update.normalized(relevance - torch.eye(relevance.shape[-1]))


class Attention(nn.Module):
    """Attention whose probabilities are kept, with their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.probabilities: list[Tensor] = []

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, x in ((self.query, tokens), (self.key, context), (self.value, context))
        )
        weights = torch.softmax(query @ key.mT / 3, -1)
        self.probabilities.append(weights)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Translator(nn.Module):
    """Two encoder layers; a decoder whose cross-attention module is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Attention() for _ in range(2))
        self.decoder, self.cross = Attention(), Attention()
        self.head = nn.Linear(WIDTH, 5)

    def between(self, memory: Tensor) -> Tensor:
        return memory

    def forward(self, source: Tensor, words: Tensor) -> Tensor:
        for layer in self.encoder:
            source = source + layer(source, source)
        source = self.between(source)
        for _ in range(2):
            words = words + self.decoder(words, words)
            words = words + self.cross(words, source)
        return self.head(words)


class Placed(Translator):
    """The decoder reads the source's features beside learned ones."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(6, WIDTH))
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)

    def between(self, memory: Tensor) -> Tensor:
        return self.narrow(torch.cat([memory, self.beside(memory)], -1))

    def beside(self, memory: Tensor) -> Tensor:
        return self.places.expand_as(memory)


def given(kind: type = Translator) -> tuple[Any, tuple[Tensor, Tensor], tuple[int, int]]:
    model = with_random_weights(kind())
    return model, (drawn(3, 6, WIDTH, seed=1), drawn(3, 4, WIDTH, seed=2)), (2, 1)


def weighted_attention(model: Translator, inputs: Any, target: tuple[int, int]) -> list[Tensor]:
    """Each map of the model in the order of its layers: two of the encoder, then the decoder's."""
    modules = [*model.encoder, model.decoder, model.cross]
    for module in modules:
        module.probabilities.clear()
    score = model(*inputs)[(slice(None), *target)].sum()
    kept = [p for module in modules for p in module.probabilities]
    gradients = torch.autograd.grad(score, kept)
    maps = [(g * p).relu().mean(1).detach() for g, p in zip(gradients, kept, strict=True)]
    first, second, *decoder = maps
    return [first, second, decoder[0], decoder[2], decoder[1], decoder[3]]


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


def test_relevance_takes_the_place_of_attention():
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


@pytest.mark.parametrize("method", ROLLED_OUT)
@pytest.mark.parametrize("name", SUBJECTS)
def test_flow_and_matrices_agree_without_cross_attention(name: str, method: type):
    first, second = (
        subject(name).attribute(lambda model, p=p: method(model, propagation=p))
        for p in ("paper", "flow")
    )

    assert_close(first, second, relative=0)


@pytest.mark.parametrize("method", ROLLED_OUT)
@pytest.mark.parametrize("name", ["timm ViT", "BERT", "GPT-2", "pixels and ids"])
def test_the_flow_is_a_row_of_the_matrices(name: str, method: type):
    model = subject(name).model
    chosen = subject(name)
    inputs = chosen.inputs if isinstance(chosen.inputs, tuple) else (chosen.inputs,)
    tokens = chosen.attribute_tokens(method)
    tokens = torch.cat(tokens if isinstance(tokens, tuple) else (tokens,), 1)

    (matrix,) = method(model).relevance_maps(inputs, chosen.target, chosen.extra).values()

    read = {"GPT-2": -1}.get(name, 0)
    row = matrix[:, read, matrix.shape[-1] - tokens.shape[-1] :]
    assert_close(row, tokens)


def test_flow_and_matrices_differ_with_cross_attention():
    model, inputs, target = given()
    paper, flow = (
        GenericAttentionRelevance(model, propagation=p).attribute_tokens(inputs, target)[0]
        for p in ("paper", "flow")
    )

    assert flow.isfinite().all()
    assert flow.any()
    assert (paper - flow).abs().max() > 0.01 * paper.max()


def test_flow_through_cross_attention_by_hand():
    model, inputs, target = given()
    one, two, own_1, cross_1, own_2, cross_2 = weighted_attention(model, inputs, target)
    source = torch.eye(6) + one
    source = source + two @ source
    words, mixed = torch.eye(4) + own_1, cross_1 @ source
    words, mixed = words + own_2 @ words, mixed + own_2 @ mixed
    mixed = mixed + cross_2 @ source

    method = GenericAttentionRelevance(model, propagation="flow")
    of_source, of_words = method.attribute_tokens(inputs, target)

    assert_close(of_source, mixed[:, target[0]])
    assert_close(of_words, (words - torch.eye(4))[:, target[0]])


def test_unknown_propagation_is_refused():
    with pytest.raises(ValueError, match="must be 'paper' or 'flow', got 'matrix'"):
        GenericAttentionRelevance(Translator(), propagation="matrix")  # type: ignore[arg-type]


class Shuffled(Translator):
    def between(self, memory: Tensor) -> Tensor:
        return memory.roll(1, 1)


class Shortened(Translator):
    def between(self, memory: Tensor) -> Tensor:
        return memory[:, 1:]


class HalfShuffled(Placed):
    def beside(self, memory: Tensor) -> Tensor:
        return memory.roll(1, 1)


class Replaced(Translator):
    def between(self, memory: Tensor) -> Tensor:
        return memory.mean(1, keepdim=True).expand_as(memory)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (Shuffled, "tokens change places"),
        (HalfShuffled, "tokens change places"),
        (Replaced, "tokens change places"),
        (Shortened, "runs over 5 tokens of 'source', .* 6 were"),
    ],
)
def test_tokens_that_move_between_calls_are_refused(changed: type, why: str):
    model = with_random_weights(changed())
    _, inputs, target = given()

    with pytest.raises(UnsupportedOperationError, match=rf"{why}.* `propagation='flow'`"):
        GenericAttentionRelevance(model).attribute(inputs, target)
    with pytest.raises(UnsupportedOperationError, match=why):
        GenericAttentionRelevance(model).relevance_maps(inputs, target)
    flow = GenericAttentionRelevance(model, propagation="flow").attribute(inputs, target)
    assert all(part.any() for part in flow)


@pytest.mark.parametrize("method", [*ROLLED_OUT, RawAttention])
def test_padded_words_have_no_say(method: type):
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


class SharedQueries(Translator):
    """Learned queries that attend to each other before they are repeated for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, 4, WIDTH))

    def forward(self, source: Tensor) -> Tensor:
        words = self.queries + self.decoder(self.queries, self.queries)
        words = words.expand(len(source), -1, -1)
        return self.head(words + self.cross(words, source))


def test_learned_queries_that_samples_share_are_refused_in_batches():
    model, (source, _), target = with_random_weights(SharedQueries()), given()[1], given()[2]

    with pytest.raises(UnsupportedOperationError, match=r"once for all samples.* one by one"):
        GenericAttentionRelevance(model).attribute(source, target)
    assert GenericAttentionRelevance(model).attribute(source[:1], target).any()
    flow = GenericAttentionRelevance(model, propagation="flow")
    assert_close(flow.attribute(source, target)[:1], flow.attribute(source[:1], target))
