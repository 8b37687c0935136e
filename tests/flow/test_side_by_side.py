"""Views or inputs side by side along the samples' dimension, which attend at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import UnsupportedOperationError
from tests.flow.graphs import drawn, tokens
from tests.flow.oracle import expected

METHODS = [GenericAttentionRelevance, RawAttention, TransformerAttribution, PartialLRP]
WIDTH, CLASSES = 8, 3


class Tower(nn.Module):
    def __init__(self, written_out=False):
        super().__init__()
        torch.manual_seed(0)
        self.qkvs = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.written_out = written_out

    def forward(self, x):
        for qkv in self.qkvs:
            parts = qkv(self.norm(x)).reshape(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
            query, key, value = parts.unbind(0)
            if self.written_out:
                attended = (query @ key.mT).softmax(-1) @ value
            else:
                attended = F.scaled_dot_product_attention(query, key, value)
            x = x + attended.transpose(1, 2).reshape(x.shape)
        return self.head(x[:, 0])


def both(x):
    return [x, x.flip(1)]


def _written(x):
    views = x.new_empty(2 * len(x), *x.shape[1:])
    views[: len(x)] = x
    views[len(x) :] = x.flip(1)
    return views


TAKEN_TOGETHER = {
    "mean": lambda f, x: f(torch.cat(both(x))).view(2, len(x), -1).mean(0),
    "sum": lambda f, x: f(torch.cat(both(x))).unflatten(0, (2, -1)).sum(0),
    "mean of a stack": lambda f, x: (
        f(torch.stack(both(x), 1).flatten(0, 1)).view(len(x), 2, -1).mean(1)
    ),
    "a stack ahead": lambda f, x: f(torch.stack(both(x)).flatten(0, 1)).view(2, len(x), -1).sum(0),
    "chunk": lambda f, x: torch.add(*f(torch.cat(both(x))).chunk(2)),
    "difference": lambda f, x: torch.sub(*f(torch.cat(both(x))).chunk(2)),
    "product": lambda f, x: torch.mul(*f(torch.cat(both(x))).split(len(x))),
    "slices": lambda f, x: (z := f(torch.cat(both(x))))[: len(x)] + 2 * z[len(x) :],
    "repeat": lambda f, x: f(x.repeat(2, 1, 1)).view(2, len(x), -1).mean(0),
    "interleaved": lambda f, x: f(x.repeat_interleave(2, 0)).view(len(x), 2, -1).mean(1),
    "joined": lambda f, x: torch.cat(f(torch.cat(both(x))).chunk(2), 1),
    "expanded": lambda f, x: (
        f(x[:, None].expand(-1, 2, -1, -1).flatten(0, 1)).unflatten(0, (-1, 2)).mean(1)
    ),
    "expanded ahead": lambda f, x: (
        f(x.expand(2, *x.shape).reshape(-1, *x.shape[1:])).view(2, len(x), -1).sum(0)
    ),
    "repeated behind": lambda f, x: (
        f(x[:, None].repeat(1, 2, 1, 1).flatten(0, 1)).view(len(x), 2, -1).sum(1)
    ),
    "tiled": lambda f, x: torch.add(*f(x.tile(2, 1, 1)).chunk(2)),
    "picked twice": lambda f, x: torch.add(*f(x[[*range(len(x))] * 2]).chunk(2)),
    "picked in turns": lambda f, x: (
        f(x.index_select(0, torch.arange(2 * len(x)) // 2)).view(len(x), 2, -1).sum(1)
    ),
    "the same stacked": lambda f, x: (
        f(torch.stack([x, x], 1).flatten(0, 1)).view(len(x), 2, -1).mean(1)
    ),
    "the same joined": lambda f, x: torch.add(*f(torch.cat([x, x])).chunk(2)),
    "behind each other": lambda f, x: (
        f(torch.cat(both(x), 1).reshape(-1, *x.shape[1:])).view(len(x), 2, -1).sum(1)
    ),
    "outer product": lambda f, x: (
        f(torch.einsum("v,btd->vbtd", torch.ones(2), x).flatten(0, 1)).view(2, len(x), -1).sum(0)
    ),
    "written": lambda f, x: torch.add(*f(_written(x)).chunk(2)),
}


@pytest.fixture
def x():
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", TAKEN_TOGETHER)
@pytest.mark.parametrize("method", METHODS)
def test_they_are_not_taken_together(method, name, samples, written_out, x):
    tower = Tower(written_out)
    explainer = method(lambda x: TAKEN_TOGETHER[name](tower, x))
    with pytest.raises(UnsupportedOperationError, match="once for each view"):
        explainer.attribute(x[:samples], 1)


def test_two_inputs(x):
    tower = Tower()
    explainer = GenericAttentionRelevance(
        lambda a, b: F.cosine_similarity(*tower(torch.cat([a, b])).chunk(2))
    )
    with pytest.raises(UnsupportedOperationError, match="once for each view"):
        explainer.attribute((x, x.flip(0)))


@pytest.mark.parametrize("method", [*METHODS, AttentionRollout])
def test_one_of_them_is_as_alone(method, x):
    tower = Tower()
    alone = method(tower).attribute(x, 1)
    picked = method(lambda x: tower(torch.cat(both(x))).chunk(2)[0]).attribute(x, 1)
    torch.testing.assert_close(picked, alone, rtol=1e-4, atol=1e-6)


def test_nothing_that_is_joined_to_zeros_is_no_view(x):
    def model(x):
        y = Tower()(x)
        return y - torch.cat([torch.zeros_like(y[:1]), y[:-1]])

    found = RawAttention(model).attribute(x[:1], 1)
    torch.testing.assert_close(found, RawAttention(Tower()).attribute(x[:1], 1))


@pytest.mark.parametrize("name", ["mean", "mean of a stack", "chunk"])
def test_normalised_rows_are_those_of_runs_for_each(name, x):
    """Where rows add up to one, two rows of one call and of two calls are worth the same."""
    tower = Tower()
    expected = AttentionRollout(lambda x: sum(tower(view) for view in both(x))).attribute(x, 1)
    found = AttentionRollout(lambda x: TAKEN_TOGETHER[name](tower, x)).attribute(x, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [GenericAttentionRelevance, RawAttention])
def test_windows_and_samples_one_by_one_are_no_views(method, x):
    tower = Tower()
    x = x[:, :4]
    alone = method(tower).attribute(x, 1)
    one_by_one = method(lambda x: torch.cat([tower(one) for one in x.split(1)])).attribute(x, 1)
    torch.testing.assert_close(one_by_one, alone, rtol=1e-4, atol=1e-6)
    windows = method(lambda x: tower(x.reshape(-1, 2, WIDTH)).view(len(x), 2, -1).mean(1))
    assert windows.attribute(x, 1).isfinite().all()


CUT = {
    "chunks": lambda x: x.chunk(2, 1),
    "chunks rearranged": lambda x: [part.unflatten(1, (1, 2))[:, 0] for part in x.chunk(2, 1)],
    "slices": lambda x: [x[:, :2], x[:, 2:]],
    "slices rearranged": lambda x: [(y := x.mT)[..., :2].mT, y[..., 2:].mT.clone()],
    "slices of two transposes": lambda x: [x.mT[..., :2].mT, x.mT[..., 2:].mT],
    "slices of one transpose": lambda x: [x.mT[..., :2].mT, x[:, 2:]],
    "chunks of copies": lambda x: [x.clone().chunk(2, 1)[0], x.mT.contiguous().mT.split(2, 1)[1]],
}


@pytest.mark.parametrize("cut", CUT)
@pytest.mark.parametrize("method", METHODS)
def test_windows_that_are_cut_out_are_no_views(method, cut, x):
    tower, x = Tower(), x[:, :4]

    def model(cut):
        return method(lambda x: tower(cut(x).flatten(0, 1)).view(len(x), 2, -1).mean(1))

    expected = model(lambda x: x.unflatten(1, (2, 2))).attribute(x, 1)
    found = model(lambda x: torch.stack(CUT[cut](x), 1)).attribute(x, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    overlapping = model(lambda x: torch.stack([x[:, :2], x[:, 1:3]], 1))
    with pytest.raises(UnsupportedOperationError, match="once for each view"):
        overlapping.attribute(x, 1)


@pytest.mark.parametrize("name", TAKEN_TOGETHER)
def test_views_in_random_graphs(name):
    for seed in range(10):
        program = drawn(seed)
        x = tokens(program)
        together = GenericAttentionRelevance(lambda x, p=program: TAKEN_TOGETHER[name](p, x))
        with pytest.raises(UnsupportedOperationError, match="once for each view"):
            together.attribute_tokens(x, 1)


LAID = {
    "cat": lambda x: torch.cat(both(x)),
    "expand": lambda x: x.expand(2, *x.shape).flatten(0, 1),
    "repeat": lambda x: x.repeat(2, 1, 1),
}


@pytest.mark.parametrize("name", LAID)
def test_one_view_of_a_random_graph(name):
    for seed in range(20):
        program = drawn(seed)
        x = tokens(program)
        picked = GenericAttentionRelevance(
            lambda x, p=program: p(LAID[name](x))[: len(x)], with_identity=True
        )
        wanted = expected(program, x, 1, with_identity=True)
        torch.testing.assert_close(picked.attribute(x, 1).sum(-1), wanted)


def block(x, keys):
    """An attention block for some of the tokens, which attend to all."""
    query, key, value = (
        t @ torch.linspace(-1, 1, WIDTH**2, dtype=t.dtype).view(WIDTH, WIDTH).roll(n, 1).sin()
        for n, t in enumerate((x, keys, keys))
    )
    return x + (query @ key.mT).softmax(-1) @ value


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 2], [1, 3]])
@pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout, RawAttention])
def test_blocks_of_tokens_are_no_branches(method, sizes):
    """Single tokens that are joined and pooled looked like a stack of branches, all whole."""

    def in_blocks(x, sizes):
        x = torch.cat([block(part, x) for part in x.split(sizes, 1)], 1)
        return x.mean(1) @ torch.eye(WIDTH, CLASSES, dtype=x.dtype)

    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, whole = (
        method(lambda x, s=s: in_blocks(x, s)).attribute(x, 1) for s in (sizes, [len(x[0])])
    )
    torch.testing.assert_close(found, whole)
