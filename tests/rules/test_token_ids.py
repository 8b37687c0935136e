"""Token ids that are computed with before they are looked up."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.errors import InvalidInputError

METHODS = {
    "flow": GenericAttentionRelevance,
    "full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
}
WIDTH, BUCKETS, VOCABULARY = 8, 5, 20
IDS = torch.tensor([[3, 14, 15, 9], [2, 6, 5, 3]])


class Model(nn.Module):
    """Attention over tokens that are made of some embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(BUCKETS, WIDTH // 2) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)
        self.double()

    def buckets(self, ids: Tensor) -> list[Tensor]:
        return [((ids + 1) * prime) % BUCKETS for prime in (31, 43)]

    def looked_up(self, ids: Tensor) -> Tensor:
        pairs = zip(self.tables, self.buckets(ids), strict=True)
        return torch.cat([table(bucket) for table, bucket in pairs], -1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.looked_up(ids)
        x = x + F.scaled_dot_product_attention(x, x, x)
        return self.head(x[:, 0])


class Tabulated(Model):
    """The same with one table for all ids."""

    def looked_up(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, super().looked_up(torch.arange(VOCABULARY)).detach())


@pytest.mark.parametrize("method", METHODS)
def test_hashed_ids_get_what_they_would_get_from_one_table(method):
    explain = METHODS[method]
    hashed, expected = (explain(model()).attribute(IDS, target=1) for model in (Model, Tabulated))
    assert expected.any()
    torch.testing.assert_close(hashed, expected)


class Forgetful(Model):
    """Of the ids only remains whether they are large."""

    def buckets(self, ids: Tensor) -> list[Tensor]:
        return [(ids > 9).long()] * 2


@pytest.mark.parametrize("method", METHODS)
def test_ids_that_no_table_sees_are_refused(method):
    with pytest.raises(InvalidInputError, match="does not depend on any of the inputs"):
        METHODS[method](Forgetful()).attribute(IDS, target=1)


class Unread(Model):
    """Only embeddings count."""

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x)
        return self.head(x[:, 0])


@pytest.mark.parametrize("method", METHODS)
def test_ids_beside_an_input_that_alone_counts_are_refused(method):
    x = torch.rand(2, 4, WIDTH, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="does not depend on 'ids'"):
        METHODS[method](Unread()).attribute((IDS, x), target=1)
