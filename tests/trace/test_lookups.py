"""Token ids that are looked up in every spelling: the same embedding, the same map."""

import pytest
import torch
from torch import nn

from captum_transformer import (
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    TransformerAttribution,
)
from captum_transformer.errors import UnsupportedOperationError

IDS = torch.tensor([[3, 14, 15, 9, 2, 6], [2, 7, 1, 8, 2, 8]])
METHODS = [
    ConservativeLRP,
    GenericAttentionRelevance,
    AttentionRollout,
    PartialLRP,
    lambda model: TransformerAttribution(model, propagate_to_input=True),
]
SAME = {
    "brackets": lambda table, ids: table[ids],
    "brackets and a slice": lambda table, ids: table[ids, :],
    "for each feature": lambda table, ids: table[ids[..., None], torch.arange(8)],
    "select": lambda table, ids: table.index_select(0, ids.flatten()).view(*ids.shape, 8),
    "gather": lambda table, ids: table.expand(len(ids), -1, -1).gather(
        1, ids[..., None].expand(-1, -1, 8)
    ),
    "along": lambda table, ids: torch.take_along_dim(table[None], ids[..., None], 1),
    "take": lambda table, ids: table.take(ids[..., None] * 8 + torch.arange(8)),
}
FEATURES_FIRST = {
    "brackets": lambda table, ids: table.mT[:, ids].permute(1, 2, 0),
    "a square table": lambda table, ids: table[:8].mT[:, ids % 8].permute(1, 2, 0),
    "select": lambda table, ids: (
        table.mT.index_select(1, ids.flatten()).view(8, *ids.shape).permute(1, 2, 0)
    ),
    "a new dimension": lambda table, ids: table[None, ids][0],
    "features before ids": lambda table, ids: table.mT[torch.arange(8)[:, None, None], ids].permute(
        1, 2, 0
    ),
}


class Reader(nn.Module):
    def __init__(self, look_up):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(20, 8, dtype=torch.float64))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(8, 3, dtype=torch.float64)
        self.look_up = look_up

    def forward(self, ids):
        tokens = self.look_up(self.table, ids)
        return self.head((tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spelling", SAME)
def test_the_same_embedding_has_the_same_map(method, spelling):
    expected = method(Reader(lambda table, ids: nn.functional.embedding(ids, table)))
    found = method(Reader(SAME[spelling]))
    for ids in (IDS, IDS[1:]):
        torch.testing.assert_close(found.attribute(ids, 1), expected.attribute(ids, 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spelling", FEATURES_FIRST)
def test_features_in_front_are_refused(method, spelling):
    with pytest.raises(UnsupportedOperationError):
        method(Reader(FEATURES_FIRST[spelling])).attribute(IDS, 1)


def test_the_refusal_says_what_to_do():
    with pytest.raises(UnsupportedOperationError, match=r"not its last dimensions.*`table\[ids\]`"):
        ConservativeLRP(Reader(FEATURES_FIRST["brackets"])).attribute(IDS, 1)


@pytest.mark.parametrize(
    "write",
    [
        lambda tokens: tokens[:, 3:].zero_(),
        lambda tokens: tokens.narrow(1, 3, 3).zero_().add_(1.0),
        lambda tokens: torch.zero_(tokens[:, 3:]),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_tokens_set_to_zero_have_no_relevance(method, write):
    def look_up(table, ids):
        tokens = table[ids]
        write(tokens)
        return tokens

    found = method(Reader(look_up)).attribute(IDS, 1)
    assert not found[:, 3:].any()
    assert found[:, :3].any()


@pytest.mark.parametrize("method", METHODS)
def test_tokens_that_are_joined_and_added_to_one_of_their_parts(method):
    """As in the state space layers of Mamba 2, where a chunk is put before the others."""

    def look_up(table, ids):
        tokens, others = table[ids], table[ids + 1]
        return torch.cat([tokens, others], 1)[:, :6] + others

    found = method(Reader(look_up)).attribute(IDS, 1)
    added = method(Reader(lambda table, ids: table[ids] + table[ids + 1])).attribute(IDS, 1)
    torch.testing.assert_close(found, added)
