"""No share ends in silence: what reaches no input was joined to the tokens, and is known."""

import pytest
import torch

from captum_transformer.account import Reason
from captum_transformer.calling import Arguments
from captum_transformer.rules.flow.maps import attend_with
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow
from captum_transformer.trace import traced_forward
from tests.attr.subjects import SUBJECTS, subject
from tests.flow.graphs import drawn, tokens


def flow(model, arguments, score, *, skip=True):
    """What of a share of one for each sample reaches each input, and what is taken."""
    with traced_forward(model, arguments, keep=KEEP) as forward:
        selected, value = forward.select(score)
        layers = {
            call.layer: attend_with(lambda call, rows: call.probabilities(rows))
            for call in forward.calls
        }
        taken = {}
        seeds = {value: torch.ones(value.shape, dtype=selected.dtype)}
        every = TokenFlow(forward.tape, layers, skip=skip)
        reached = every(seeds, forward.values, taken)
    return [float(reached[value].sum()) for value in forward.values], taken


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_only_learned_tokens_take_a_share(start):
    for seed in range(start, start + 20):
        program = drawn(seed)
        (found,), taken = flow(program, Arguments(tokens(program)), 1)
        assert abs(taken.get(Reason.ELSEWHERE, 0)) < 1e-9, program.steps
        if program.learned is None:
            assert abs(taken.get(Reason.JOINED, 0)) < 1e-9, program.steps
        else:
            # Attention's rows sum up to one, so that each sequence of calls has a share of one.
            sequences = found + float(taken[Reason.JOINED])
            assert abs(sequences - round(sequences)) < 1e-6, program.steps


@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_is_lost_in_models(name):
    given = subject(name)
    arguments = Arguments(given.inputs, given.extra, given.named)
    found, taken = flow(given.model, arguments, given.target)
    assert abs(taken.get(Reason.ELSEWHERE, 0)) < 1e-6 * sum(found)
