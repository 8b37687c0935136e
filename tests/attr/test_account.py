"""Where the relevance of a score goes: shares by reason and sample, and leaks that are found."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    Contrast,
    GenericAttentionRelevance,
    PartialLRP,
    TransformerAttribution,
)
from captum_transformer.account import INPUTS, Reason
from captum_transformer.calling import Arguments
from captum_transformer.errors import ConservationError
from captum_transformer.rules import relevance
from captum_transformer.rules.propagate import Shares, conserved
from captum_transformer.rules.relevance import TABLE
from captum_transformer.rules.relevance.rule import Entry, Table
from captum_transformer.trace import traced_forward
from captum_transformer.trace.kinds import Kind
from tests.attr.accounts import Small, parts_add_up, small_model
from tests.attr.subjects import SUBJECTS, subject
from tests.attr.tiny_models import images, timm_vit


@pytest.fixture
def small() -> tuple[Small, Tensor]:
    return small_model()


PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.mark.parametrize("method", [TransformerAttribution, ConservativeLRP, AttnLRP])
def test_each_sample_has_its_own_account(small: Any, method: Callable[..., Any]) -> None:
    model, x = small
    together = method(model).account(x, 1)
    parts_add_up(together)
    for i in range(3):
        alone = method(model).account(x[i : i + 1], 1)
        for taker in together.shares():
            torch.testing.assert_close(alone.of(taker), together.of(taker)[i : i + 1])


def test_the_inputs_have_the_relevance_of_full_lrp(small: Any) -> None:
    model, x = small
    method = TransformerAttribution(model, propagate_to_input=True)
    account = method.account(x, 1)
    torch.testing.assert_close(account.of(INPUTS), method.attribute(x, 1).sum((1, 2)))
    shares = account.shares(by_source=True)
    assert {"joined constants: token", "added constants: position"} <= set(shares)
    assert account.total.tolist() == [1.0] * 3


def test_the_account_explains_the_convergence_delta(small: Any) -> None:
    model, x = small
    method = ConservativeLRP(model)
    account = method.account(x, 1)
    _, delta = method.attribute(x, 1, return_convergence_delta=True)
    torch.testing.assert_close(account.delta, delta)
    assert account.of(Reason.REST.value).abs().max() < 1e-10
    for taker in (Reason.BIAS, Reason.ADDED, Reason.JOINED, Reason.ACTIVATION):
        assert account.of(taker.value).abs().min() > 1e-4


def test_constants_have_their_value_times_the_gradient(small: Any) -> None:
    model, x = small
    account = AttnLRP(model).account(x, 1)
    tokens: dict[str, Tensor] = {}
    model.head.register_forward_pre_hook(lambda _, given: tokens.update(head=given[0]))
    model(x)
    of_head = model.head.bias[1].detach().expand(3)
    (head,) = (part for part in account.parts if part.source == "head (linear)")
    torch.testing.assert_close(head.amount, of_head)
    assert head.taker == Reason.BIAS.value


def test_shares_of_an_addition_by_hand() -> None:
    term = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 3.0], [2.0, 0.5]], dtype=torch.float64)
    with traced_forward(lambda x: x + term, Arguments(x), keep=TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        seeds = {value: torch.ones_like(x)}
        _, ledger = conserved(forward.tape, seeds, TABLE, forward.values)
        (of_term,) = (t.amount for t in ledger.taken if t.reason is Reason.ADDED)
    shares = torch.stack([x / (x + term), term / (x + term)]).sum(-1).abs()
    torch.testing.assert_close(of_term, 2 * shares[1] / shares.sum(0), rtol=1e-6, atol=0)


def leaking(kind: Kind, kept: float) -> Table:
    """The table, with a rule that passes on less or more than it received."""
    entry = TABLE.entries[kind]

    def rule(operation: Any, incoming: Any) -> Shares:
        shares = entry.rule(operation, incoming)
        return Shares([s if s is None else s * kept for s in shares], shares.taken)

    return TABLE | {kind: Entry(rule, keeps=entry.keeps)}


@PRECISIONS
@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Kind.NORM, "`layer_norm` in `fc_norm`"),
        (Kind.ADD, "`add` in `blocks.1`"),
        (Kind.ENTRYWISE, "`gelu` in `blocks.1.mlp.act`"),
        (Kind.MEAN, "`mean`"),
    ],
)
@pytest.mark.parametrize("kept", [0.99, 1.01])
def test_a_rule_that_leaks_is_named(
    monkeypatch: Any, kind: Kind, named: str, kept: float, dtype: torch.dtype
) -> None:
    model, pixels = timm_vit(global_pool="avg").to(dtype), images().to(dtype)
    method = TransformerAttribution(model)
    method.attribute(pixels, 1)  # the rules themselves are sound
    rules = leaking(kind, kept)
    monkeypatch.setattr(relevance, "with_sparsity", lambda *_: rules)
    with pytest.raises(ConservationError, match=f"({named}).*(loses|adds) [01]\\.\\d\\d%"):
        method.attribute(pixels, 1)


@pytest.mark.parametrize("name", SUBJECTS)
def test_all_relevance_is_in_the_account(name: str) -> None:
    explained = subject(name).map(lambda t: t.float() if t.is_floating_point() else t)
    method = TransformerAttribution(explained.model.float())
    account = method.account(
        explained.inputs,
        explained.target,
        explained.extra,
        additional_forward_kwargs=explained.named,
    )
    torch.testing.assert_close(account.total, torch.ones_like(account.total))
    added = sum(part.amount.sum() for part in account.parts)
    torch.testing.assert_close(added, account.total.sum(), rtol=1e-4, atol=1e-4)
    assert abs(account.share(Reason.EPSILON.value)) < 0.5


@pytest.mark.parametrize("method", [TransformerAttribution, ConservativeLRP, AttnLRP])
def test_the_account_of_a_contrast_is_the_difference_of_accounts(
    small: Any, method: Callable[..., Any]
) -> None:
    model, x = small
    explain = method(model)
    found, target, other = (explain.account(x, t) for t in (Contrast(0, 1), 0, 1))
    parts_add_up(found)
    for taker in target.shares():
        if taker != Reason.REST.value:
            torch.testing.assert_close(found.of(taker), target.of(taker) - other.of(taker))


@pytest.mark.parametrize("target", [1, torch.tensor([0, 2, 1]), Contrast(0, [1, 2, 1])])
@pytest.mark.parametrize("method", [TransformerAttribution, ConservativeLRP, AttnLRP])
def test_an_account_is_the_same_a_few_samples_at_a_time(
    small: Any, method: Callable[..., Any], target: Any
) -> None:
    model, x = small
    together = method(model).account(x, target)
    for size in (1, 2):
        found = method(model).account(x, target, internal_batch_size=size)
        torch.testing.assert_close(found.total, together.total)
        for taker in {part.taker for part in (*found.parts, *together.parts)}:
            torch.testing.assert_close(found.of(taker), together.of(taker), rtol=1e-6, atol=1e-9)


def test_partial_lrp_checks_conservation(monkeypatch: Any, small: Any) -> None:
    model, x = small
    rules = leaking(Kind.ADD, 0.9)
    monkeypatch.setattr(relevance, "with_sparsity", lambda *_: rules)
    with pytest.raises(ConservationError, match="`add`"):
        PartialLRP(model).attribute_tokens(x, 1)


@pytest.mark.parametrize("method", [TransformerAttribution, ConservativeLRP, AttnLRP])
def test_a_bias_that_is_added_is_still_a_bias(small: Any, method: Callable[..., Any]) -> None:
    model, x = small

    class Written(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.layer.weight.T + self.layer.bias

    expected = method(model).account(x, 1)
    model.project, model.head = Written(model.project), Written(model.head)
    found = method(model).account(x, 1)
    for taker in (INPUTS, "biases", "added constants"):
        torch.testing.assert_close(found.of(taker), expected.of(taker), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", [GenericAttentionRelevance, TransformerAttribution])
def test_constants_in_a_maximum_have_an_amount_for_each_sample(
    small: Any, method: Callable[..., Any]
) -> None:
    model, x = small
    floor = torch.rand(8, dtype=torch.float64)

    def clipped(x: Tensor) -> Tensor:
        x = model.project(x)
        x = x + model.attention(x, x, x, need_weights=False)[0]
        return model.head(torch.maximum(x, floor).mean(1))

    together = method(clipped).account(x, 1)
    alone = [method(clipped).account(x[i : i + 1], 1) for i in range(len(x))]
    of_constants = together.of(Reason.CONSTANT.value)
    assert of_constants.abs().min() > 1e-3
    expected = torch.cat([account.of(Reason.CONSTANT.value) for account in alone])
    torch.testing.assert_close(of_constants, expected)


class Stacked(nn.Module):
    """Samples are prepared one by one, so that the account can't separate what is added there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(torch.stack([(sample - 0.5) / 2 for sample in x]))


@pytest.mark.parametrize("method", [ConservativeLRP, AttnLRP])
def test_amounts_of_all_samples_together_count_once(small: Any, method: Callable[..., Any]) -> None:
    model, x = small
    together = method(Stacked(model)).account(x, 1)
    added = sum(part.amount.sum() for part in together.parts)
    torch.testing.assert_close(added, together.total.sum(), rtol=1e-5, atol=1e-5)
    parts = method(lambda x: model((x - 0.5) / 2)).account(x, 1)
    for taker, share in parts.shares().items():
        assert together.shares().get(taker, 0.0) == pytest.approx(share, abs=1e-5)


def test_a_score_of_zero_has_amounts_but_no_shares(small: Any) -> None:
    model, x = small
    account = ConservativeLRP(lambda x: (score := model(x)) - score.detach()).account(x, 1)
    assert not account.total.any()
    table = str(account)
    assert "nan" not in table
    assert "inf" not in table
    amount = float(account.of(INPUTS).sum()) / 3
    assert f"{amount:.4f}         -" in table
    assert all(math.isnan(share) for share in account.shares().values())
    assert math.isnan(account.share(INPUTS))
