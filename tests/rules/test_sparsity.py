"""Relevance of a score that is read from one token or class."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from captum_transformer.calling import Arguments
from captum_transformer.rules.propagate import propagate
from captum_transformer.rules.relevance import TABLE, with_sparsity
from captum_transformer.rules.relevance.sparsity import sparsity_from
from captum_transformer.trace import traced_forward

TOKENS, WIDTH, CLASSES = 6, 5, 4


class Head(nn.Module):
    """An MLP beside a skip, a norm and a head, on all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.outer(F.gelu(self.inner(tokens)))
        return self.head(self.norm(tokens))


class Transposed(Head):
    """The same with products written as GPT-2 has them, and another one without a bias."""

    def forward(self, tokens: Tensor) -> Tensor:
        rows = tokens.reshape(-1, WIDTH)
        inner = torch.addmm(self.inner.bias, rows, self.inner.weight.T)
        outer = torch.addmm(self.outer.bias, F.gelu(inner), self.outer.weight.T)
        tokens = tokens + outer.view(tokens.shape)
        return self.norm(tokens) @ self.head.weight.T + self.head.bias


READERS = {
    "token and class": lambda scores: scores[:, 2, 3],
    "last token": lambda scores: scores[:, -1][:, 0],
    "behind an ellipsis": lambda scores: scores[..., 1, None, 3].squeeze(-1),
    "select": lambda scores: scores.select(1, 4).select(-1, 2),
    "two tokens": lambda scores: scores[:, 0, 1] + scores[:, 3, 1],
    "two classes": lambda scores: scores[:, 1, 0] * scores[:, 1, 2],
    "one of a few": lambda scores: scores[:, 1:4][:, 2, 0],
    "place of each sample": lambda scores: scores[
        torch.arange(len(scores)), torch.tensor([5, 0]), 1
    ],
    "tokens first": lambda scores: scores.transpose(0, 1)[3][:, 0],
}


def propagated(function, tokens: Tensor, *, known: bool) -> tuple[Tensor, int]:
    """The relevance of the tokens, and how many multiplications it took."""
    with traced_forward(function, Arguments(tokens), keep=TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        places = sparsity_from(value, forward.tape) if known else {}
        rule = with_sparsity(places)
        seeds = {value: torch.ones_like(forward.output)}
        with FlopCounterMode(display=False) as flops:
            result = propagate(forward.tape, seeds, rule, forward.values)
        return result[forward.values[0]], flops.get_total_flops()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [Head, Transposed])
def test_relevance_is_what_it_is_without_knowing_the_place(kind, reader):
    torch.manual_seed(0)
    model, tokens = kind().double(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)

    def score(tokens: Tensor) -> Tensor:
        return READERS[reader](model(tokens))

    expected, _ = propagated(score, tokens, known=False)
    found, _ = propagated(score, tokens, known=True)
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_matrix_may_be_there_once_for_a_batch_of_tokens():
    torch.manual_seed(0)
    model, tokens = Head().double(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)

    def score(tokens: Tensor) -> Tensor:
        first = model.norm(tokens).transpose(0, 1) @ model.head.weight.T.unsqueeze(0)
        return first[2][:, 1]

    expected, found = (propagated(score, tokens, known=known)[0] for known in (False, True))
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [Head, Transposed])
def test_only_products_of_the_token_and_the_class_are_taken(kind):
    model, tokens = kind(), torch.randn(1, 100, WIDTH)
    _, of_all = propagated(lambda tokens: model(tokens).sum((1, 2)), tokens, known=True)
    _, of_one = propagated(lambda tokens: model(tokens)[:, 7, 2], tokens, known=True)
    assert of_one < of_all / 80  # products of one token are taken anew, without the bias


def test_a_value_that_is_read_twice_has_no_place():
    model = Head()
    tokens = torch.randn(1, TOKENS, WIDTH)
    with traced_forward(
        lambda x: (scores := model(x))[:, 0, 0] + scores.sum((1, 2)), Arguments(tokens)
    ) as forward:
        found = sparsity_from(forward.tape.find(forward.output), forward.tape)
        assert not found[forward.values[0]]
