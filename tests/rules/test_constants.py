"""Constants that are added to signals or multiplied with them: for one sample as for several."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    TransformerAttribution,
)
from tests.rules.by_hand import doubles

METHODS = {
    "TransformerAttribution": TransformerAttribution,
    "full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "PartialLRP": PartialLRP,
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
    "GenericAttentionRelevance": GenericAttentionRelevance,
}
SAMPLES, TOKENS, WIDTH, CLASSES = 3, 4, 8, 5
X = doubles(SAMPLES, TOKENS, WIDTH, seed=1)
NUMBERS, LOGITS = doubles(SAMPLES, 1, seed=2), doubles(SAMPLES, CLASSES, seed=3)
TIMES, PLACES = doubles(SAMPLES, WIDTH, seed=4), doubles(SAMPLES, TOKENS, WIDTH, seed=5)
Head = Callable[[Tensor], Tensor]


class Encoder(nn.Module):
    """One layer, whose parts take constants."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.embed, self.branch = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.double()

    def layer(self, x: Tensor, scale: Tensor | float = 0.0, shift: Tensor | float = 0.0) -> Tensor:
        y = self.norm(x) * (1 + scale) + shift
        return x + self.branch(F.scaled_dot_product_attention(y, y, y))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x))[:, 0])


encode = Encoder()

WITH_CONSTANTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "a number for each sample": (lambda x, c: encode(x) + c, NUMBERS),
    "logits": (lambda x, c: encode(x) + c, LOGITS),
    "subtracted logits": (lambda x, c: encode(x) - c, LOGITS),
    "another model": (lambda x, _: encode(x) + encode(x.flip(1)).detach(), LOGITS),
    "in front of the head": (
        lambda x, c: encode.head(encode.layer(encode.embed(x))[:, 0] + c),
        TIMES,
    ),
    "of tokens": (
        lambda x, c: encode.head(encode.layer(encode.embed(x) + c[:, None])[:, 0]),
        TIMES,
    ),
    "of each token": (lambda x, c: encode.head(encode.layer(encode.embed(x) + c)[:, 0]), PLACES),
    "of rows": (
        lambda x, c: encode.head(
            encode.layer(
                (encode.embed(x).flatten(0, 1) + c.repeat_interleave(TOKENS, 0)).unflatten(
                    0, (-1, TOKENS)
                )
            )[:, 0]
        ),
        TIMES,
    ),
    "modulated": (
        lambda x, c: encode.head(encode.layer(encode.embed(x), c[:, None], c[:, None].cos())[:, 0]),
        TIMES,
    ),
    "less its own mean": (
        lambda x, _: encode(x) - encode(x).detach().mean(-1, keepdim=True),
        LOGITS,
    ),
    "samples second": (
        lambda x, c: encode.head(
            encode.layer((encode.embed(x).transpose(0, 1) + c).transpose(0, 1))[:, 0]
        ),
        TIMES,
    ),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_a_constant_of_each_sample_is_what_it_is_for_one_alone(name: str, method) -> None:
    function, constant = WITH_CONSTANTS[name]
    together = method(function).attribute(X, 1, constant)
    alone = [method(function).attribute(X[n : n + 1], 1, constant[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_bias_that_is_repeated_for_each_sample_is_a_bias(method) -> None:
    def scores(x: Tensor, bias: Tensor) -> Tensor:
        x = encode.layer(encode.embed(x))[:, 0]
        return F.linear(x, encode.head.weight) + bias

    plain = method(encode).attribute(X, 1)
    assert plain.any()
    repeated = method(lambda x: scores(x, encode.head.bias.repeat(len(x), 1))).attribute(X, 1)
    torch.testing.assert_close(repeated, plain)


LOWEST_OR_HIGHEST = [0, -1, 0]
TARGETS = encode(X).argsort(-1)[range(SAMPLES), LOWEST_OR_HIGHEST]
ONE_HOT = F.one_hot(TARGETS, CLASSES).double()
PICKED: dict[str, Head] = {
    "product": lambda z: (z * ONE_HOT[: len(z)]).sum(-1),
    "einsum": lambda z: torch.einsum("bc,bc->b", z, ONE_HOT[: len(z)]),
    "bmm": lambda z: torch.bmm(z[:, None], ONE_HOT[: len(z), :, None])[:, 0, 0],
    "bmm, constant first": lambda z: torch.bmm(ONE_HOT[: len(z), None], z[..., None])[:, 0, 0],
    "vecdot": lambda z: torch.linalg.vecdot(z, ONE_HOT[: len(z)]),
    "matmul": lambda z: (z[:, None] @ ONE_HOT[: len(z)].unsqueeze(-1)).flatten(),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("spelling", PICKED)
def test_a_score_that_is_picked_by_a_product_is_that_score(spelling: str, method) -> None:
    scores = encode(X)[range(SAMPLES), TARGETS]
    assert scores[0] < 0 < scores[1]
    expected = method(encode).attribute(X, TARGETS)
    assert expected[0].any()
    explain = method(lambda x: PICKED[spelling](encode(x)))
    torch.testing.assert_close(explain.attribute(X), expected)
    torch.testing.assert_close(explain.attribute(X[:1]), expected[:1])


MEAN, FIRST = torch.full((TOKENS,), 1 / TOKENS).double(), torch.eye(TOKENS)[0].double()
SWAPPED = [2, 0, 3, 1]
MOVE = torch.eye(TOKENS).double()[SWAPPED]
READ: dict[str, tuple[Head, Head]] = {
    "mean, bmm": (lambda x: x.mean(1), lambda x: (MEAN.expand(len(x), 1, -1) @ x)[:, 0]),
    "mean, einsum": (lambda x: x.mean(1), lambda x: torch.einsum("bnd,n->bd", x, MEAN)),
    "mean, tensordot": (lambda x: x.mean(1), lambda x: torch.tensordot(x, MEAN, ([1], [0]))),
    "mean, vector first": (lambda x: x.mean(1), lambda x: MEAN @ x),
    "mean, moved": (lambda x: x.mean(1), lambda x: x.mT @ MEAN),
    "one of them, einsum": (lambda x: x[:, 0], lambda x: torch.einsum("n,bnd->bd", FIRST, x)),
    "one of them, matmul": (lambda x: x[:, 0], lambda x: (FIRST[None, None] @ x)[:, 0]),
    "permuted": (lambda x: x[:, SWAPPED].mean(1), lambda x: (MOVE @ x).mean(1)),
    "dispatched": (
        lambda x: x[:, SWAPPED].mean(1),
        lambda x: torch.einsum("btd,bte->bed", x, MOVE.T.repeat(len(x), 1, 1)).mean(1),
    ),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", READ)
def test_a_product_with_constants_that_sums_over_tokens_is_no_linear_layer(name, method) -> None:
    as_sum, as_product = (
        method(lambda x, read=read: encode.head(read(encode.layer(encode.embed(x)))))
        for read in READ[name]
    )
    expected = as_sum.attribute(X, 1)
    assert expected.any()
    torch.testing.assert_close(as_product.attribute(X, 1), expected)
    torch.testing.assert_close(as_product.attribute(X[:1], 1), expected[:1])


WEIGHT = encode.head.weight.detach()
SCORED: dict[str, Head] = {
    "matmul": lambda x: x @ WEIGHT.T,
    "einsum": lambda x: torch.einsum("bd,cd->bc", x, WEIGHT),
    "one by one": lambda x: torch.stack([x @ row for row in WEIGHT], -1),
    "of all samples": lambda x: torch.bmm(x[:, None], WEIGHT.T.expand(len(x), -1, -1))[:, 0],
    "in front": lambda x: (x[:, None] @ WEIGHT.T[None])[:, 0],
    "parameter": lambda x: (encode.head.weight[None] @ x[..., None])[..., 0],
    "convolution": lambda x: F.conv1d(x[..., None], WEIGHT[..., None])[..., 0],
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("spelling", SCORED)
def test_a_product_with_constants_that_sums_over_features_is_a_linear_layer(
    spelling: str, method
) -> None:
    def scores(head: Head) -> Callable[[Tensor], Tensor]:
        return lambda x: head(encode.norm(encode.layer(encode.embed(x)))[:, 0])

    expected = method(scores(lambda x: F.linear(x, WEIGHT))).attribute(X, 1)
    explain = method(scores(SCORED[spelling]))
    torch.testing.assert_close(explain.attribute(X, 1), expected)
    torch.testing.assert_close(explain.attribute(X[:1], 1), expected[:1])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_constant_of_each_token_is_what_it_is_for_one_token_alone(method) -> None:
    def placed(x: Tensor, mask: Tensor) -> Tensor:
        y = encode.embed(x) + PLACES[:1, : x.shape[1]]
        z = y + encode.branch(F.scaled_dot_product_attention(y, y, y, attn_mask=mask))
        return encode.head((z + PLACES[1:2, : x.shape[1]])[:, 0])

    for tokens in (1, 2):
        mask = (torch.arange(TOKENS) < tokens).expand(SAMPLES, TOKENS, TOKENS)
        whole = method(placed).attribute(X, 2, mask)[:, :tokens]
        for samples in (SAMPLES, 1):
            part = mask[:samples, :tokens, :tokens]
            cut = method(placed).attribute(X[:samples, :tokens], 2, part)
            torch.testing.assert_close(cut, whole[:samples], rtol=1e-9, atol=1e-12)
