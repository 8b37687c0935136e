"""Ali et al., ICML 2022: where gradient x input loses relevance, and by which rules it is kept."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import ConservativeLRP
from tests.attr.claims import EXACT


class Reads(nn.Module):
    """The first token attends with random weights, perhaps normalised before and after."""

    def __init__(self, *, attends: bool, normalises: bool) -> None:
        super().__init__()
        self.attends = attends
        layer_norm = partial(nn.LayerNorm, 6, eps=0.0, elementwise_affine=False)
        self.before, self.after = (layer_norm() if normalises else nn.Identity() for _ in range(2))
        self.attention = nn.MultiheadAttention(6, 1, bias=False, batch_first=True)
        self.head = nn.Linear(6, 2, bias=False)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.attends:
            x = self.attention(x, x, x)[0]
        return self.head(self.after(x[:, 0]))


@pytest.fixture
def random_tokens():
    return torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).double()


def total(model, x, *, attention, layer_norm):
    method = ConservativeLRP(model, attention_rule=attention, layer_norm_rule=layer_norm)
    return method.attribute(x, target=1).sum((1, 2))


def test_gradient_times_input_loses_a_covariance_in_attention(random_tokens):
    """The AH rule (eq. 11) keeps it."""
    torch.manual_seed(0)
    model, x = Reads(attends=True, normalises=False), random_tokens
    query, key, value = model.attention.in_proj_weight.detach().chunk(3)
    logits = (x @ key.T @ (query @ x[:, 0, :, None]))[..., 0] / 6**0.5
    attention = logits.softmax(1)
    to_score = model.head.weight[1] @ model.attention.out_proj.weight
    values = x @ (to_score @ value).detach()
    score = model(x)[:, 1].detach()
    torch.testing.assert_close((attention * values).sum(1), score, **EXACT)
    # The logits grow twice as fast as the input: query and key both have it.
    covariance = (attention * logits * (values - score[:, None])).sum(1)
    plain = total(model, x, attention=False, layer_norm=False)
    torch.testing.assert_close(plain, score + 2 * covariance, **EXACT)
    assert (covariance.abs() > 1e-3).all()
    held = total(model, x, attention=True, layer_norm=False)
    torch.testing.assert_close(held, score, **EXACT)


def test_gradient_times_input_loses_all_in_a_layer_norm(random_tokens):
    """Without an epsilon nothing is left; the LN rule (eq. 12) keeps it."""
    torch.manual_seed(0)
    model, x = Reads(attends=False, normalises=True), random_tokens
    score = model(x)[:, 1].detach()
    assert (score.abs() > 1e-2).all()
    plain = total(model, x, attention=False, layer_norm=False)
    torch.testing.assert_close(plain, torch.zeros_like(score), **EXACT)
    held = total(model, x, attention=False, layer_norm=True)
    torch.testing.assert_close(held, score, **EXACT)


def test_both_rules_are_needed_where_there_is_both(random_tokens):
    torch.manual_seed(0)
    model, x = Reads(attends=True, normalises=True), random_tokens
    score = model(x)[:, 1].detach()
    torch.testing.assert_close(total(model, x, attention=True, layer_norm=True), score, **EXACT)
    for attention, layer_norm in ((False, False), (True, False), (False, True)):
        lost = total(model, x, attention=attention, layer_norm=layer_norm) - score
        assert (lost.abs() > 1e-2 * score.abs()).all()
