"""The token flow on random graphs: each distinct sequence of attention calls counts once."""

import pytest
import torch

from captum_transformer import AttentionRollout, GenericAttentionRelevance
from tests.flow.graphs import KINDS, drawn, tokens
from tests.flow.oracle import expected

GRAPHS, QUICK, AT_ONCE = 600, 100, 20
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def assert_equals_the_oracle(program) -> None:
    """With what passes no attention, and without: each sequence of at least one call."""
    x = tokens(program)
    for with_identity in (False, True):
        method = GenericAttentionRelevance(
            program, with_identity=with_identity, pooled_evidence=False
        )
        wanted = expected(program, x, 1, with_identity=with_identity)
        torch.testing.assert_close(
            method.attribute_tokens(x, 1), wanted, **EXACT, msg=lambda m: f"{program.steps}: {m}"
        )


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(start, marks=() if start < QUICK else pytest.mark.slow)
        for start in range(0, GRAPHS, AT_ONCE)
    ],
)
def test_random_graphs(start):
    for seed in range(start, start + AT_ONCE):
        assert_equals_the_oracle(drawn(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_block(kind):
    for seed in range(3):
        assert_equals_the_oracle(drawn(seed, [kind]))


@pytest.mark.parametrize("start", range(0, 100, AT_ONCE))
def test_normalised_rows_sum_up_to_one(start):
    for seed in range(start, start + AT_ONCE):
        program = drawn(seed, learned=0)
        rows = AttentionRollout(program, with_identity=True).attribute_tokens(tokens(program), 1)
        total = rows.sum(1)
        torch.testing.assert_close(
            total, torch.ones_like(total), msg=lambda m, p=program: f"{p.steps}: {m}"
        )
