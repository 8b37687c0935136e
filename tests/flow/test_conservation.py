"""All shares are accounted for: those that reach no input are recorded with a reason."""

from collections import Counter
from functools import partialmethod

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import AttentionRollout, GenericAttentionRelevance, RawAttention
from captum_transformer.account import Reason
from captum_transformer.calling import Arguments
from captum_transformer.errors import ConservationError
from captum_transformer.rules.flow import maps
from captum_transformer.rules.flow.passing import Passing
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow
from captum_transformer.rules.ledger import Audit
from captum_transformer.trace import traced_forward
from captum_transformer.trace.kinds import Kind
from tests.attr.subjects import SUBJECTS, subject
from tests.attr.tiny_models import timm_vit
from tests.flow.graphs import drawn, tokens


def flow(model, arguments, score, **options):
    """What of a share of one for each sample reaches each input, and what is taken."""
    with traced_forward(model, arguments, keep=KEEP) as forward:
        selected, value = forward.select(score)
        layers = {
            call.layer: maps.attend_with(lambda call, rows: call.probabilities(rows))
            for call in forward.calls
        }
        seeds = {value: torch.ones(value.shape, dtype=selected.dtype)}
        audit = Audit()
        reached = TokenFlow(forward.tape, layers, **options)(seeds, forward.values, audit)
        assert audit.balances()
        audit.blame()
        taken = Counter()
        for _, reason, amount in audit.taken:
            taken[reason] += float(amount.sum())
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


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_relevance_that_bypasses_attention_is_known(start):
    for seed in range(start, start + 20):
        program = drawn(seed)
        arguments = Arguments(tokens(program))
        (whole,), taken = flow(program, arguments, 1)
        (passed,), apart = flow(program, arguments, 1, direct=False)
        every, some = whole + sum(taken.values()), passed + sum(apart.values())
        assert abs(every - some) < 1e-9, program.steps
        if program.learned is None:
            assert abs(passed + apart[Reason.NO_ATTENTION] - whole) < 1e-9, program.steps


@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_is_lost_in_models(name):
    given = subject(name)
    arguments = Arguments(given.inputs, given.extra, given.named)
    found, taken = flow(given.model, arguments, given.target)
    assert abs(taken.get(Reason.ELSEWHERE, 0)) < 1e-6 * sum(found)


def half(pieces):
    return [(value, key, share / 2) for value, key, share in pieces]


def moved(self, operation, key, found, *, of, rule=Passing._moved):
    pieces = list(rule(self, operation, key, found))
    return half(pieces) if operation.kind is of else pieces


def attended(self, call, key, share, *, rule=Passing._attention):
    return half(rule(self, call, key, share))


def without_the_first_query(maps, call, shares, rows, *, rule=maps._through):
    return rule(maps, call, shares, slice(rows.start + 1, rows.stop))


def with_half_a_map(maps, call, shares, rows, *, rule=maps._through):
    found = rule(maps, call, shares, rows)
    return found._replace(keys=found.keys / 2)


def divided(self, operation, key, of, share, *, rule=Passing._divided):
    pieces = list(rule(self, operation, key, of, share))
    return half(pieces) if operation.kind is Kind.CONV else pieces


def unsaid(self, operation, key, found):
    """What constants have is not taken down."""
    return found


LEAKS = {
    "attention's values": (Passing, "_attention", attended),
    "attention's queries": (maps, "_through", without_the_first_query),
    "attention's map": (maps, "_through", with_half_a_map),
    "join": (Passing, "_moved", partialmethod(moved, of=Kind.CONCATENATE)),
    "join, constant": (Passing, "_without_constants", unsaid),
    "pad": (Passing, "_moved", partialmethod(moved, of=Kind.PAD)),
    "patches": (Passing, "_divided", divided),
}


class Padded(nn.Module):
    """A class token is joined, and zeros are padded that are cut off again."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm_vit()

    def forward(self, x):
        return self.vit(F.pad(x, (0, 4, 0, 0)))


@pytest.mark.parametrize("method", [GenericAttentionRelevance, RawAttention, AttentionRollout])
@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_raises(leak, method, monkeypatch):
    x = torch.randn(2, 3, 8, 8).double()
    assert method(Padded()).attribute(x, 1).any()
    monkeypatch.setattr(*LEAKS[leak])
    with pytest.raises(ConservationError):
        method(Padded()).attribute(x, 1)
