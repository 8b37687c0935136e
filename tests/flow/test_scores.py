"""Scores that compare two signals, or a signal with a constant: similarities and distances."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance, RawAttention, TransformerAttribution
from tests.rules.test_two_towers import BATCH, WIDTH, Tower, rows_of

METHODS = [GenericAttentionRelevance, RawAttention, TransformerAttribution]


@pytest.fixture
def towers() -> tuple[Tower, Tower]:
    torch.manual_seed(0)
    return Tower(), Tower()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(BATCH, 4, WIDTH).double(), torch.randn(BATCH, 6, WIDTH).double()


DISTANCES = {
    "norm": lambda a, b: (a - b).norm(dim=-1),
    "linalg": lambda a, b: torch.linalg.vector_norm(a - b, dim=-1),
    "manhattan": lambda a, b: torch.linalg.vector_norm(a - b, 1, dim=-1),
    "pairs": F.pairwise_distance,
    "of all": lambda a, b: torch.cdist(a, b).diagonal(),
    "squares": lambda a, b: (a - b).pow(2).sum(-1).sqrt(),
    "mean squares": lambda a, b: ((a - b) ** 2).mean(-1),
}
PROJECTION = torch.randn(WIDTH, 5, generator=torch.Generator().manual_seed(2)).double()
SIMILARITIES = {
    "projected by a matrix": lambda a, b: ((a @ PROJECTION) @ (b @ PROJECTION).T).diagonal(),
    "normed and projected": lambda a, b: (
        2 * F.normalize(a @ PROJECTION, dim=-1) @ F.normalize(b @ PROJECTION, dim=-1).mT
    ).diagonal(),
}


@pytest.mark.parametrize("name", [*DISTANCES, *SIMILARITIES])
def test_each_tower_is_explained_whole(name, towers, inputs):
    score = {**DISTANCES, **SIMILARITIES}[name]
    method = GenericAttentionRelevance(lambda a, b: score(towers[0](a), towers[1](b)))

    first, second = method.attribute_tokens(inputs)

    a, b = (tower(x).detach() for tower, x in zip(towers, inputs, strict=True))
    torch.testing.assert_close(first, rows_of(towers[0], lambda v: score(v, b), inputs[0]))
    torch.testing.assert_close(second, rows_of(towers[1], lambda v: score(a, v), inputs[1]))


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_from_a_constant(name, towers, inputs):
    """As from the prototype of a class."""
    prototype = torch.randn(BATCH, WIDTH, dtype=torch.float64)

    def score(v: Tensor) -> Tensor:
        return DISTANCES[name](v, prototype)

    found = GenericAttentionRelevance(lambda x: score(towers[0](x))).attribute_tokens(inputs[0])
    torch.testing.assert_close(found, rows_of(towers[0], score, inputs[0]))


@pytest.mark.parametrize("method", METHODS)
def test_distances_from_prototypes_are_classes(method, towers, inputs):
    prototypes = nn.Parameter(torch.randn(7, WIDTH, dtype=torch.float64))
    written_out = method(lambda x: (towers[0](x)[:, None] - prototypes).norm(dim=-1))
    expected = written_out.attribute_tokens(inputs[0], 3)
    found = method(lambda x: torch.cdist(towers[0](x), prototypes)).attribute_tokens(inputs[0], 3)
    torch.testing.assert_close(found, expected)
