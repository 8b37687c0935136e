"""The samples of learned queries are known however the queries are repeated for each sample."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance
from captum_transformer.errors import UnsupportedOperationError
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import drawn, with_random_weights

WIDTH = 6


REPEATED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "expanded": lambda queries, samples: queries.expand(samples, -1, -1),
    "repeated": lambda queries, samples: queries.repeat(samples, 1, 1),
    "stacked": lambda queries, samples: torch.stack([queries[0]] * samples),
    "joined": lambda queries, samples: torch.cat([queries] * samples),
    "by a product": lambda queries, samples: torch.einsum(
        "b,qd->bqd", torch.ones(samples, dtype=queries.dtype), queries[0]
    ),
    "added": lambda queries, samples: queries + torch.zeros(samples, 1, 1),
    "picked": lambda queries, samples: queries[torch.zeros(samples, dtype=torch.long)],
    "second": lambda queries, samples: (
        queries.mT.repeat(1, 1, samples).view(WIDTH, samples, -1).permute(1, 2, 0)
    ),
}
AFTERWARDS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "broadcast": lambda queries, _: queries,
    "without a dimension": lambda queries, _: queries[0],
    **REPEATED,
}


class Queries(nn.Module):
    """Learned queries attend to each other before or after they are repeated for each sample."""

    def __init__(self, number: int, before: str, afterwards: str, samples_second: bool) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, number, WIDTH))
        self.before, self.afterwards, self.second = before, afterwards, samples_second
        self.own = nn.MultiheadAttention(WIDTH, 2, batch_first=not samples_second)
        self.project, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        queries = AFTERWARDS[self.before](self.queries, len(x))
        queries = queries.transpose(0, 1) if self.second else queries
        queries = queries + self.own(queries, queries, queries)[0]
        queries = queries.transpose(0, 1) if self.second else queries
        if self.before == "broadcast":
            queries = AFTERWARDS[self.afterwards](queries, len(x))
        x = (self.project(queries) @ x.mT).softmax(-1) @ x + queries
        return self.head(x).mean(1)


def forms_of_queries() -> list[tuple[int, int, str, str, bool]]:
    draw = random.Random(0)
    found = []
    for before, second in itertools.product(("broadcast", *REPEATED), (False, True)):
        for afterwards in draw.sample(list(AFTERWARDS), 3 if before == "broadcast" else 1):
            samples = draw.choice((2, 3))
            found.append((samples, samples * draw.choice((1, 2)), before, afterwards, second))
    return found


@pytest.mark.parametrize("given", forms_of_queries(), ids=str)
def test_samples_of_learned_queries_are_known(given: Any):
    samples, number, before, *_ = given
    model = with_random_weights(Queries(*given[1:]))
    x = drawn(samples, 5, WIDTH, seed=1)
    method = GenericAttentionRelevance(model)
    alone = torch.cat([method.attribute(one, 1) for one in x.split(1)])
    if before == "broadcast":
        # The queries' own attention runs once for all samples.
        with pytest.raises(UnsupportedOperationError, match="once for all samples"):
            method.attribute(x, 1)
    else:
        assert_close(method.attribute(x, 1), alone)
        maps = method.relevance_maps(x, 1)["learned", "x"]
        assert maps.shape == (samples, number, 5)
