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


class Causal(nn.Module):
    """Logits of the next token, of embeddings that attend to those before them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + F.scaled_dot_product_attention(x, x, x, is_causal=True)
        return self.head(x)[:, :-1].mT


causal = Causal()
WEIGHT = torch.linspace(0.5, 2, VOCABULARY, dtype=torch.float64)
LOSSES = {
    "plain": partial(F.cross_entropy),
    "weighted": partial(F.cross_entropy, weight=WEIGHT),
    "smoothed": partial(F.cross_entropy, label_smoothing=0.1),
    "weighted and smoothed": partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.1),
    "ignored": partial(F.cross_entropy, ignore_index=5),
    "nll": lambda z, labels, **k: F.nll_loss(z.log_softmax(1), labels, **k),
    "module": lambda z, labels, **k: nn.CrossEntropyLoss(**k)(z, labels),
    "padded": lambda z, labels, **k: F.cross_entropy(z, F.pad(labels, (1, 0), value=2)[:, 1:], **k),
}


@pytest.mark.parametrize("method", [*METHODS, "TransformerAttribution"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_labels_pick_and_are_no_embedding(loss, method):
    explain = METHODS.get(method, TransformerAttribution)

    def score(ids: Tensor, labels: Tensor) -> Tensor:
        return -loss(causal(ids), labels[:, 1:], reduction="none").sum(1)

    expected = explain(score).attribute(IDS, additional_forward_args=IDS.clone())
    assert expected.any()
    torch.testing.assert_close(explain(lambda ids: score(ids, ids)).attribute(IDS), expected)


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_a_mean_pick_and_are_no_embedding(method):
    explain, ids = METHODS[method], IDS[:1]

    def score(ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(causal(ids), labels[:, 1:], WEIGHT)

    expected = explain(score).attribute(ids, additional_forward_args=ids.clone())
    torch.testing.assert_close(explain(lambda ids: score(ids, ids)).attribute(ids), expected)
