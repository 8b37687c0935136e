"""Class tokens are recognised from operations, in agreement with the values."""

import pytest
import torch
from torch import nn

from captum_transformer.calling import Arguments
from captum_transformer.rules.flow.picked import picks_others
from captum_transformer.rules.flow.sources import Sources
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.trace import traced_forward

TOKENS, WIDTH = 4, 6


class Read(nn.Module):
    """Some tokens of a residual stream that learned ones were joined to."""

    def __init__(self, read, *, in_front=True, mixes=False):
        super().__init__()
        self.read, self.in_front, self.mixes = read, in_front, mixes
        self.learned = nn.Parameter(torch.ones(1, 2, WIDTH))
        self.mlp = nn.Linear(WIDTH, WIDTH)
        self.mixer = nn.Linear(TOKENS + 2, TOKENS + 2)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        parts = [self.learned.expand(len(x), -1, -1), self.mlp(x)]
        x = torch.cat(parts if self.in_front else parts[::-1], 1) + self.learned[:, :1]
        if self.mixes:
            x = x + self.mixer(self.norm(x).transpose(1, 2)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(x, x, x)
        x = x + attended
        return self.read(self.norm(x + self.mlp(self.norm(x))))


def told(model):
    """What operations tell of the score, and what numbers do."""
    with traced_forward(model, Arguments(torch.randn(2, TOKENS, WIDTH))) as forward:
        value = forward.tape.find(forward.output)
        sought = 1 << forward.values[0].index
        flow = TokenFlow(forward.tape, {})
        of_inputs = flow.comes_from_input(value, forward.values, torch.zeros(()))
        sources = forward.tape.derived(Sources)
        return picks_others(value, sought, sources, forward.values), bool(of_inputs.any())


@pytest.mark.parametrize(
    ("read", "in_front"),
    [
        (lambda x: x[:, 0], True),
        (lambda x: x[:, :2], True),
        (lambda x: x[:, 1].relu() * 2, True),
        (lambda x: x.select(1, -1), False),
        (lambda x: x[:, -1:].squeeze(1).flatten(1), False),
    ],
)
def test_learned_tokens_that_are_picked_are_known(read, in_front):
    assert told(Read(read, in_front=in_front)) == (True, False)


@pytest.mark.parametrize(
    "model",
    [
        Read(lambda x: x[:, 2]),
        Read(lambda x: x[:, :3]),
        Read(lambda x: x[:, 1:].mean(1)),
        Read(lambda x: x[:, 0] + x[:, 2]),
        Read(lambda x: torch.cat([x[:, 0], x[:, 2]], -1)),
        Read(lambda x: x.flip(1)[:, 0]),
        Read(lambda x: x[:, 0], in_front=False),
        Read(lambda x: x[:, 0], mixes=True),
        Read(lambda x: x),
    ],
)
def test_what_holds_inputs_is_not_taken_for_them(model):
    assert told(model) == (False, True)
