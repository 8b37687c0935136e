"""The token flow and the matrices of several streams agree, or only the flow gives a map."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance
from captum_transformer.errors import UnsupportedOperationError
from tests.attr.subjects import SUBJECTS, assert_close, subject
from tests.attr.tiny_models import with_random_weights
from tests.rules.streams import WIDTH, Placed, Translator, given, weighted_attention
from tests.rules.test_co_attention import ROLLED_OUT


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


class SharedQueries(Translator):
    """Learned queries that attend to each other before they are repeated for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, 4, WIDTH))

    def forward(self, source: Tensor) -> Tensor:
        words = self.queries + self.decoder(self.queries, self.queries)
        words = words.expand(len(source), -1, -1)
        return self.head(words + self.cross(words, source))


def test_learned_queries_shared_by_samples_are_refused_in_batches():
    model, (source, _), target = with_random_weights(SharedQueries()), given()[1], given()[2]

    with pytest.raises(UnsupportedOperationError, match=r"once for all samples.* one by one"):
        GenericAttentionRelevance(model).attribute(source, target)
    assert GenericAttentionRelevance(model).attribute(source[:1], target).any()
    flow = GenericAttentionRelevance(model, propagation="flow")
    assert_close(flow.attribute(source, target)[:1], flow.attribute(source[:1], target))
