"""Heads, samples and queries that attend one by one: a call each, however they are joined."""

from functools import cache

import pytest
import torch
from torch import nn

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import UnsupportedOperationError

TOKENS, WIDTH, HEADS = 4, 8, 4
METHODS = [AttentionRollout, GenericAttentionRelevance, RawAttention]


def attend(query, key, value):
    return (query @ key.mT).softmax(-1) @ value


def by_head(q, k, v):
    return [attend(q[:, h], k[:, h], v[:, h]) for h in range(HEADS)]


def by_sample_and_head(q, k, v):
    return [[attend(q[i, h], k[i, h], v[i, h]) for h in range(HEADS)] for i in range(len(q))]


def flat(q, k, v):
    return [head for sample in by_sample_and_head(q, k, v) for head in sample]


def in_front(heads):
    return heads.transpose(1, 2).flatten(2)


def written(q, k, v, write):
    out = torch.zeros_like(q)
    for i, sample in enumerate(by_sample_and_head(q, k, v)):
        for h, head in enumerate(sample):
            out = write(out, i, h, head)
    return in_front(out)


def set_item(out, i, h, head):
    out[i, h] = head
    return out


def set_through_a_view(out, i, h, head):
    out[i][h].copy_(head)
    return out


def set_slices(q, k, v):
    out, width = torch.zeros_like(in_front(q)), WIDTH // HEADS
    for i, sample in enumerate(by_sample_and_head(q, k, v)):
        for h, head in enumerate(sample):
            out[i, :, h * width : (h + 1) * width] = head
    return out


def copied_at_indices(q, k, v):
    out = torch.zeros_like(q)
    for h, head in enumerate(by_head(q, k, v)):
        out = out.index_copy(1, torch.tensor([h]), head[:, None])
    return in_front(out)


def picked(q, k, v):
    order = torch.arange(len(q) * HEADS).flip(0)
    heads = torch.stack(flat(q, k, v)[::-1])[order.view(len(q), HEADS)]
    return in_front(heads)


def selected(q, k, v):
    heads = torch.stack(flat(q, k, v)).index_select(0, torch.arange(len(q) * HEADS))
    return in_front(heads.view(len(q), HEADS, TOKENS, -1))


def queries_too(q, k, v):
    rows = [
        attend(q[i, h, t : t + 1], k[i, h], v[i, h])[0]
        for i in range(len(q))
        for h in range(HEADS)
        for t in range(TOKENS)
    ]
    return in_front(torch.stack(rows).view(len(q), HEADS, TOKENS, -1))


SPELLINGS = {
    "heads stacked": lambda q, k, v: torch.stack(by_head(q, k, v), -2).flatten(2),
    "nested stacks": lambda q, k, v: in_front(
        torch.stack([torch.stack(sample) for sample in by_sample_and_head(q, k, v)])
    ),
    "heads outside": lambda q, k, v: (
        torch.stack(
            [torch.stack(list(heads)) for heads in zip(*by_sample_and_head(q, k, v), strict=True)]
        )
        .permute(1, 2, 0, 3)
        .flatten(2)
    ),
    "one stack": lambda q, k, v: in_front(
        torch.stack(flat(q, k, v)).view(len(q), HEADS, TOKENS, -1)
    ),
    "one row of tokens": lambda q, k, v: in_front(
        torch.cat(flat(q, k, v)).view(len(q), HEADS, TOKENS, -1)
    ),
    "features joined, samples stacked": lambda q, k, v: torch.stack(
        [torch.cat(sample, -1) for sample in by_sample_and_head(q, k, v)]
    ),
    "behind the tokens": lambda q, k, v: torch.stack(
        [torch.stack(sample, 1).flatten(1) for sample in by_sample_and_head(q, k, v)]
    ),
    "written": lambda q, k, v: written(q, k, v, set_item),
    "written through views": lambda q, k, v: written(q, k, v, set_through_a_view),
    "slices of features": set_slices,
    "copied at indices": copied_at_indices,
    "picked in another order": picked,
    "selected": selected,
    "queries one by one, too": queries_too,
}


class Model(nn.Module):
    def __init__(self, heads, *, projected=True):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.projected = heads, projected
        self.qkvs = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)
        self.double()

    def forward(self, x):
        for qkv, out in zip(self.qkvs, self.outs, strict=True):
            parts = qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            attended = self.heads(*parts)
            x = x + (out(attended) if self.projected else attended)
        return self.head(x[:, 0])


X = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def x():
    return X


@cache
def batched(projected):
    return Model(lambda q, k, v: torch.cat(by_head(q, k, v), -1), projected=projected)


@cache
def of_batched(method, projected):
    return method(batched(projected)).attribute_tokens(X, 1)


# Whether a projection follows makes a difference to how the heads are joined, not to how the map
# of a head is read.
ANSWERS = [
    (method, spelling, projected)
    for method in METHODS
    for spelling in SPELLINGS
    for projected in ((True, False) if method is GenericAttentionRelevance else (True,))
]


@pytest.mark.parametrize(("method", "spelling", "projected"), ANSWERS)
def test_each_head_is_a_call(method, spelling, projected, x):
    expected = of_batched(method, projected)
    model = Model(SPELLINGS[spelling], projected=projected)
    torch.testing.assert_close(model(x), batched(projected)(x))
    together = method(model).attribute_tokens(x, 1)
    alone = torch.cat([method(model).attribute_tokens(one, 1) for one in x.split(1)])
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("spelling", ["nested stacks", "one row of tokens", "written"])
def test_relevance_of_each_head(spelling, x):
    expected = of_batched(TransformerAttribution, projected=True)
    found = TransformerAttribution(Model(SPELLINGS[spelling])).attribute_tokens(x, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spelling", ["heads stacked", "one stack", "written", "selected"])
def test_rows_of_heads_add_up_to_one(spelling, x):
    rollout = AttentionRollout(Model(SPELLINGS[spelling]), with_identity=True)
    found = rollout.attribute_tokens(x, 1).sum(1)
    torch.testing.assert_close(found, torch.ones_like(found))


def test_attention_to_unmixed_features_has_no_rows(x):
    """Half of a token's features have attended and half have not: which row is the token's?"""

    def model(x):
        y = torch.cat([x[..., :4], attend(x, x, x)[..., :4]], -1)
        return (y + attend(y, y, y))[:, 0]

    with pytest.raises(UnsupportedOperationError, match="no layer has mixed them"):
        AttentionRollout(model).attribute(x, 1)
    assert GenericAttentionRelevance(model).attribute(x, 1).isfinite().all()
