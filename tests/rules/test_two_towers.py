"""Two signals that meet in a product or a sum, as when an image and a text are compared."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow
from captum_transformer.trace import traced_forward

WIDTH, BATCH = 8, 3


class Tower(nn.Module):
    """One attention layer, read from its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.double()

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        weights = (query @ key.mT / WIDTH**0.5).softmax(-1)
        if maps is not None:
            maps.append(weights)
        return self.out((x + weights @ value)[:, 0])


@pytest.fixture
def towers() -> tuple[Tower, Tower]:
    torch.manual_seed(0)
    return Tower(), Tower()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    image, text = torch.randn(BATCH, 4, WIDTH), torch.randn(BATCH, 6, WIDTH)
    return image.double(), text.double()


def gram(z: Tensor) -> Tensor:
    return z @ z.mT


SIMILARITIES = {
    "diagonal of a matrix": lambda a, b: (a @ b.T).diagonal(),
    "matrix of normed vectors": lambda a, b: (
        F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T * 14.0 + 0.5
    ).diagonal(),
    "rows picked": lambda a, b: (a @ b.T)[torch.arange(BATCH), torch.arange(BATCH)],
    "linear": lambda a, b: F.linear(a, b).diagonal(),
    "one by one": lambda a, b: (a[:, None] @ b[:, :, None])[:, 0, 0],
    "einsum": lambda a, b: torch.einsum("bd,bd->b", a, b),
    "einsum of a matrix": lambda a, b: torch.einsum("id,jd->ij", a, b).diagonal(),
    "sum of products": lambda a, b: (a * b).sum(-1),
    "concatenated": lambda a, b: (torch.cat([a, a], 1) @ torch.cat([b, b], 1).T).diagonal(),
    "by heads": lambda a, b: torch.einsum("bhd,bhd->b", a.view(-1, 2, 4), b.view(-1, 2, 4)),
    "heads merged": lambda a, b: torch.einsum(
        "bd,bd->b", *(x.view(-1, 2, 4).transpose(1, 2).reshape(-1, WIDTH) for x in (a, b))
    ),
    "cosine": lambda a, b: F.cosine_similarity(a, b) * 2,
    "cosine of a matrix": lambda a, b: F.cosine_similarity(a[:, None], b, dim=-1).diagonal(),
    "joined, a matrix": lambda a, b: gram(torch.cat([a, b])).diagonal(len(a)),
    "joined, einsum of a matrix": lambda a, b: torch.einsum(
        "id,jd->ij", *[torch.cat([a, b])] * 2
    ).diagonal(len(a)),
    "joined, a block": lambda a, b: gram(torch.cat([a, b]))[: len(a), len(a) :].diagonal(),
    "joined and normed": lambda a, b: gram(F.normalize(torch.cat([a, b]))).diagonal(len(a)),
    "joined, cosines": lambda a, b: F.cosine_similarity(
        (z := torch.cat([a, b]))[:, None], z, dim=-1
    ).diagonal(len(a)),
    "joined and divided": lambda a, b: (
        (z := torch.cat([a, b]).chunk(2))[0][:, None] @ z[1][..., None]
    ).flatten(),
    "stacked": lambda a, b: gram(torch.stack([a, b], 1))[:, 0, 1],
    "stacked and unbound": lambda a, b: torch.mul(*torch.stack([a, b], 1).unbind(1)).sum(-1),
    "features joined": lambda a, b: torch.mul(
        *torch.cat([a, b], 1).view(-1, 2, WIDTH).unbind(1)
    ).sum(-1),
    "features joined and divided": lambda a, b: torch.einsum(
        "bd,bd->b", *torch.cat([a, b], 1).chunk(2, 1)
    ),
}


def rows_of(tower: Tower, score, x: Tensor) -> Tensor:
    """The row of ICCV 2021's R - I that the score is read from."""
    maps: list[Tensor] = []
    (gradient,) = torch.autograd.grad(score(tower(x, maps)).sum(), maps)
    return (maps[0] * gradient).relu()[:, 0]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_each_tower_is_explained_whole(name, towers, inputs):
    similarity = SIMILARITIES[name]
    method = GenericAttentionRelevance(lambda a, b: similarity(towers[0](a), towers[1](b)))

    first, second = method.attribute_tokens(inputs)

    a, b = (tower(x).detach() for tower, x in zip(towers, inputs, strict=True))
    torch.testing.assert_close(first, rows_of(towers[0], lambda v: similarity(v, b), inputs[0]))
    torch.testing.assert_close(second, rows_of(towers[1], lambda v: similarity(a, v), inputs[1]))


@pytest.mark.parametrize(
    "method",
    [GenericAttentionRelevance, TransformerAttribution, ConservativeLRP, RawAttention],
)
@pytest.mark.parametrize("name", [name for name in SIMILARITIES if "picked" not in name])
def test_pairs_of_a_batch_do_not_matter_to_each_other(name, method, towers, inputs):
    def score(a: Tensor, b: Tensor) -> Tensor:
        return SIMILARITIES[name](towers[0](a), towers[1](b))

    together = method(score).attribute(inputs)

    for i in range(BATCH):
        alone = method(score).attribute(tuple(x[[i]] for x in inputs))
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(all_of_them[[i]], one)


# What is not alike, or put together, in two spellings: side by side, or joined and taken apart.
TOGETHER = {
    "distance": (
        lambda a, b, _: (a - b).mean(1).norm(dim=-1),
        lambda a, b, _: torch.cdist(z := torch.cat([a, b]).mean(1), z).diagonal(len(a)),
    ),
    "difference of sums": (
        lambda a, b, _: a.mean(1).sum(-1) - b.mean(1).sum(-1),
        lambda a, b, _: torch.sub(*torch.cat([a, b]).mean(1).sum(-1).chunk(2)),
    ),
    "difference of products": (
        lambda a, b, w: a.mean(1) @ w - b.mean(1) @ w,
        lambda a, b, w: torch.sub(*(torch.stack([a.mean(1), b.mean(1)], 1) @ w).unbind(1)),
    ),
    "features": (
        lambda a, b, w: torch.cat([a.mean(1), b.mean(1)], -1) @ torch.cat([w, w]),
        lambda a, b, w: torch.cat([a, b], -1).mean(1) @ torch.cat([w, w]),
    ),
    "features that are compared": (
        lambda a, b, w: (a.mean(1) * w).sum(-1) + (b.mean(1) * w).sum(-1),
        lambda a, b, w: (torch.cat([a, b], -1).mean(1)[:, None] @ torch.cat([w, w])).flatten(),
    ),
}


def joined_twice(name, method, towers, inputs):
    """The shares of two towers, joined in each of the two spellings."""

    def attended(tower: Tower, x: Tensor) -> Tensor:
        query, key, value = tower.qkv(x).chunk(3, -1)
        return tower.out(x + (query @ key.mT).softmax(-1) @ value)

    inputs = (inputs[0], inputs[1][:, :4])
    return [
        method(
            lambda a, b, put=put: put(
                attended(towers[0], a), attended(towers[1], b), torch.ones(WIDTH).double()
            )
        ).attribute_tokens(inputs)
        for put in TOGETHER[name]
    ]


@pytest.mark.parametrize("method", [AttentionRollout, RawAttention])
@pytest.mark.parametrize("name", TOGETHER)
def test_concatenated_towers_are_taken_apart(name, method, towers, inputs):
    if name == "distance" and method is AttentionRollout and not differentiable_twice(torch.cdist):
        with pytest.raises(UnsupportedOperationError, match=r"no derivative of .*cdist"):
            joined_twice(name, method, towers, inputs)
        return
    apart, joined = joined_twice(name, method, towers, inputs)
    torch.testing.assert_close(joined, apart)


def differentiable_twice(function) -> bool:
    x, y = (torch.rand(2, 3, requires_grad=True) for _ in range(2))
    (slope,) = torch.autograd.grad(function(x, y).sum(), x, create_graph=True)
    try:
        torch.autograd.grad(slope.sum(), x)
    except NotImplementedError:  # torch.cdist, in PyTorch 2.9
        return False
    return True


def test_signals_without_attention_of_their_own_get_half_each(towers, inputs):
    def score(a: Tensor, _: Tensor) -> Tensor:
        pooled = towers[0](a)
        return (towers[1].out(pooled)[:, None] @ pooled[:, :, None])[:, 0, 0]

    flow = shares_at(score, inputs, at=lambda operation: operation.name == "matmul")
    assert flow == [0.5, 0.5]


def shares_at(score, inputs, at) -> list[float]:
    """How much of a share of one the operands of the last chosen operation get."""
    with traced_forward(score, Arguments(inputs), keep=KEEP) as forward:
        output = forward.tape.find(forward.output)
        operation = [o for o in forward.tape.operations if at(o)][-1]
        values = [value for _, value in operation.traced()]
        seeds = {output: torch.ones(output.shape, dtype=torch.float64)}
        reached = TokenFlow(forward.tape, {})(seeds, values)
        return [float(reached[value].sum() / BATCH) for value in values]


@pytest.mark.parametrize("combine", [torch.add, torch.mul, lambda a, b: b + a])
def test_an_input_beside_attention_keeps_its_share(combine, towers, inputs):
    """As a table's columns beside a text: without attention, but an input of its own."""
    table = inputs[1][:, 0]
    head = nn.Linear(WIDTH, WIDTH).double()

    def score(a: Tensor, table: Tensor) -> Tensor:
        return combine(towers[0](a), head(table))[:, 3]

    tokens, columns = GenericAttentionRelevance(score).attribute((inputs[0], table))
    assert tokens.any()
    assert not columns.any()
    method = GenericAttentionRelevance(score, with_identity=True)
    _, columns = method.attribute((inputs[0], table))
    torch.testing.assert_close(columns.sum(1), torch.ones(BATCH, dtype=torch.float64))
    last = RawAttention(score)
    tokens, columns = last.attribute((inputs[0], table))
    torch.testing.assert_close(tokens.sum((1, 2)), torch.ones(BATCH, dtype=torch.float64))
    assert not columns.any()


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: a.mT @ b[:, :4],
        lambda a, b: torch.einsum("bnd,bne->bde", a, b[:, :4]),
        lambda a, b: a @ b @ b.mT,
        lambda a, b: torch.einsum("bnd,bmd->bm", a, b),
        lambda a, b: (a @ b.mT) @ b,
    ],
)
def test_products_that_sum_over_tokens_are_refused(product, towers, inputs):
    a = towers[0].qkv
    b = towers[1].qkv

    def score(x: Tensor, y: Tensor) -> Tensor:
        attended = towers[0](x)[:, None]
        return product(a(x + attended)[..., :6], b(y)[..., :6]).flatten(1)[:, 0]

    with pytest.raises(UnsupportedOperationError, match="it mixes several signals"):
        GenericAttentionRelevance(score).attribute(inputs)
