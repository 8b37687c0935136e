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
from captum_transformer.errors import InvalidInputError, UnsupportedOperationError

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


TABLE = torch.randperm(VOCABULARY)
# What is made of the ids by other functions than those that renumber them, and added to embeddings.
NUMBERS = {
    "a number": lambda ids, table: ids.double()[..., None] * table[0],
    "a quotient": lambda ids, table: (ids / VOCABULARY)[..., None] * table[0],
    "one-hot": lambda ids, table: F.one_hot(ids, VOCABULARY).double() @ table,
    "compared": lambda ids, table: (ids[..., None] == torch.arange(VOCABULARY)).double() @ table,
    "characters": lambda ids, table: table[TABLE.view(-1, 2).repeat(2, 1)[ids]].mean(2),
    "gathered": lambda ids, table: table[TABLE.expand(len(ids), -1).gather(1, ids)],
    "summed": lambda ids, table: table[ids.cumsum(1) % VOCABULARY],
    "bits": lambda ids, table: table[ids & 7],
    "shifted bits": lambda ids, table: table[ids >> 1],
    "bags": lambda ids, table: F.embedding_bag(ids.view(-1, 1), table).view(*ids.shape, -1),
    "bins": lambda ids, table: table[torch.bucketize(ids, torch.tensor([3, 6, 9]))],
}
# Which tokens there are says nothing of what they are.
PLACES = {
    "positions": lambda ids, table: table[(ids != 2).long().cumsum(1)],
    "mask": lambda ids, table: (ids != 2).double()[..., None] * table[0],
    "length": lambda ids, table: table[(ids != 2).sum(1, keepdim=True)],
    "last": lambda ids, table: table[(ids == 5).int().argmax(-1)][:, None],
    "largest": lambda ids, table: table[ids.max(1).indices][:, None],
    "detached": lambda ids, table: ids.double().detach()[..., None] * table[0],
}


class Beside(Model):
    """Embeddings, to which something else that is made of the ids is added."""

    def __init__(self, made) -> None:
        super().__init__()
        self.made = made
        self.table = nn.Parameter(torch.randn(VOCABULARY, WIDTH, dtype=torch.float64))

    def looked_up(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.table)
        return x + self.made(ids, self.table.flip(0))


@pytest.mark.parametrize("method", ["full LRP", "ConservativeLRP", "AttnLRP", "flow"])
@pytest.mark.parametrize("made", NUMBERS)
def test_numbers_that_are_made_of_ids_are_refused(method, made):
    with pytest.raises(UnsupportedOperationError, match="makes numbers of integers"):
        METHODS[method](Beside(NUMBERS[made])).attribute(IDS, target=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("made", PLACES)
def test_which_tokens_there_are_is_a_constant(method, made):
    model = Beside(PLACES[made])
    added = model.made(IDS, model.table.flip(0)).detach()
    constant = Beside(lambda *_: added)
    found, expected = (METHODS[method](one).attribute(IDS, target=1) for one in (model, constant))
    assert expected.any() or method == "flow"  # which has only what raises the score
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_ids_of_another_vocabulary_get_what_they_would_get_from_one_table(method):
    renumbered = Beside(lambda ids, table: table[TABLE[ids]])
    in_one = Beside(lambda ids, table: F.embedding(ids, table[TABLE]))
    found, expected = (
        METHODS[method](one).attribute(IDS, target=1) for one in (renumbered, in_one)
    )
    torch.testing.assert_close(found, expected)
    alone = METHODS[method](Beside(lambda ids, table: 0 * table[ids])).attribute(IDS, target=1)
    assert not torch.allclose(found, alone)


@pytest.mark.parametrize("method", METHODS)
def test_integers_that_are_only_numbers_are_no_inputs(method):
    class Weighted(Model):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            x = self.looked_up(ids) * mask.double()[..., None]
            return self.head((x + F.scaled_dot_product_attention(x, x, x))[:, 0])

    with pytest.raises(InvalidInputError, match="does not depend on 'mask'"):
        METHODS[method](Weighted()).attribute((IDS, torch.ones_like(IDS)), target=1)


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
