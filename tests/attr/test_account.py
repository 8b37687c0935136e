"""Where the relevance of a score goes: shares by reason, by sample, and leaks that are found."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    Contrast,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.account import INPUTS, Account, Reason
from captum_transformer.calling import Arguments
from captum_transformer.errors import ConservationError, UnsupportedOperationError
from captum_transformer.rules import relevance
from captum_transformer.rules.propagate import Shares, conserved
from captum_transformer.rules.relevance import TABLE
from captum_transformer.rules.relevance.rule import Entry, Table
from captum_transformer.trace import traced_forward
from captum_transformer.trace.kinds import Kind
from tests.attr.subjects import SUBJECTS, subject
from tests.attr.tiny_models import images, timm_vit

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


class Small(nn.Module):
    """A class token beside projected tokens, positions, one attention layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.project(x)], 1)
        x = x + self.position
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(nn.functional.gelu(x[:, 0] + x[:, 1:].mean(1)))


@pytest.fixture
def small() -> tuple[Small, Tensor]:
    torch.manual_seed(0)
    model = Small().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model, torch.randn(3, 4, 6, dtype=torch.float64)


def parts_add_up(account: Account) -> None:
    added = sum(part.amount for part in account.parts)
    torch.testing.assert_close(added, account.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(account.of(INPUTS) - account.total, account.delta)


@pytest.mark.parametrize("method", [TransformerAttribution, ConservativeLRP, AttnLRP])
def test_each_sample_has_an_account_of_its_own(small: Any, method: Callable[..., Any]) -> None:
    model, x = small
    together = method(model).account(x, 1)
    parts_add_up(together)
    for i in range(3):
        alone = method(model).account(x[i : i + 1], 1)
        for taker in together.shares():
            torch.testing.assert_close(alone.of(taker), together.of(taker)[i : i + 1])


def test_the_inputs_have_what_full_lrp_gives_them(small: Any) -> None:
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
    """The table, with a rule that silently hands on less than it got."""
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
def test_a_rule_that_leaks_is_found_and_named(
    monkeypatch: Any, kind: Kind, named: str, kept: float, dtype: torch.dtype
) -> None:
    model, pixels = timm_vit(global_pool="avg").to(dtype), images().to(dtype)
    method = TransformerAttribution(model)
    method.attribute(pixels, 1)  # the rules themselves are sound
    rules = leaking(kind, kept)
    monkeypatch.setattr(relevance, "with_sparsity", lambda _: rules)
    with pytest.raises(ConservationError, match=f"({named}).*(loses|adds) [01]\\.\\d\\d%"):
        method.attribute(pixels, 1)


@pytest.mark.parametrize("name", SUBJECTS)
def test_all_that_is_lost_is_owned_up_to(name: str) -> None:
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
def test_the_account_of_a_contrast_is_that_of_one_side_less_the_other(
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


def test_partial_lrp_checks_its_relevance_too(monkeypatch: Any, small: Any) -> None:
    model, x = small
    rules = leaking(Kind.ADD, 0.9)
    monkeypatch.setattr(relevance, "with_sparsity", lambda _: rules)
    with pytest.raises(ConservationError, match="`add`"):
        PartialLRP(model).attribute_tokens(x, 1)


@pytest.mark.parametrize("method", [TransformerAttribution, ConservativeLRP, AttnLRP])
def test_a_bias_is_one_in_every_spelling(small: Any, method: Callable[..., Any]) -> None:
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
def test_where_constants_win_a_maximum_each_sample_has_its_own_amount(
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
    """Samples that are prepared one by one, so that what is added there can't be told apart."""

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


def test_of_nothing_there_are_amounts_but_no_shares(small: Any) -> None:
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


class TestOfTheRowThatTheScoreIsReadFrom:
    """The methods that read attention maps: their account is that of one row."""

    @pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout])
    def test_the_class_token_has_its_own_column(self, method: Callable[..., Any]) -> None:
        explained, x = method(timm_vit()), images()
        account = explained.account(x, 1)
        whole = method(timm_vit(), with_identity=True)
        row = whole.relevance_maps(x, 1)["x", "x"][:, 0]
        torch.testing.assert_close(account.total, row.sum(-1))
        torch.testing.assert_close(account.of(Reason.JOINED.value), row[:, 0])
        torch.testing.assert_close(account.of(INPUTS), explained.attribute(x, 1).sum((1, 2, 3)))
        assert "joined constants: cls_token" in account.shares(by_source=True)

    @pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout])
    def test_what_passes_no_attention_has_a_part(self, method: Callable[..., Any]) -> None:
        model, x = timm_vit(class_token=False, global_pool="avg"), images()
        account, whole = (
            method(model, with_identity=counts).account(x, 1) for counts in (False, True)
        )
        left_out = account.of(Reason.NO_ATTENTION.value)
        halves = 1 if method is GenericAttentionRelevance else 0.5 ** len(model.blocks)
        torch.testing.assert_close(left_out, torch.full_like(left_out, halves))
        torch.testing.assert_close(account.of(INPUTS) + left_out, whole.of(INPUTS))
        torch.testing.assert_close(account.total, whole.total)

    @pytest.mark.parametrize("method", [RawAttention, PartialLRP, AttentionGradCam])
    def test_of_one_layer(self, method: Callable[..., Any]) -> None:
        explained, x = method(timm_vit()), images()
        account = explained.account(x, 1)
        torch.testing.assert_close(account.of(INPUTS), explained.attribute(x, 1).sum((1, 2, 3)))
        if method is RawAttention:
            torch.testing.assert_close(account.total, torch.ones_like(account.total))
        if method is not AttentionGradCam:  # which leaves learned tokens out
            row = explained.relevance_maps(x, 1)["x", "x"][:, 0]
            torch.testing.assert_close(account.of(Reason.JOINED.value), row[:, 0])

    @pytest.mark.parametrize("name", SUBJECTS)
    def test_of_models(self, name: str) -> None:
        given = subject(name)
        method = GenericAttentionRelevance(given.model)
        arguments = {"additional_forward_kwargs": given.named}
        account = method.account(given.inputs, given.target, given.extra, **arguments)
        maps = method.attribute(given.inputs, given.target, given.extra, **arguments)
        parts_add_up(account)
        reached = sum(tensor.sum() for tensor in pytree.tree_leaves(maps))
        torch.testing.assert_close(account.of(INPUTS).sum(), reached)
        if not set(account.shares()) - {INPUTS}:
            torch.testing.assert_close(account.total, account.of(INPUTS))

    def test_inputs_that_are_joined_have_their_own_tokens(self, small: Any) -> None:
        """Neither takes anything of the other one."""
        model, x = small

        def joined(left: Tensor, right: Tensor) -> Tensor:
            return model(torch.cat([left, right], 1))

        # What pooled tokens say weighs as much as what has passed attention, input by input.
        method = partial(GenericAttentionRelevance, pooled_evidence=False)
        account = method(joined).account((x[:, :1], x[:, 1:]), 1)
        whole = method(model).account(x, 1)
        torch.testing.assert_close(account.total, whole.total)
        torch.testing.assert_close(account.of(INPUTS), whole.of(INPUTS))

    def test_constant_keys_and_values(self, small: Any) -> None:
        """Queries that attend to learned tokens alone: all that attention gives is theirs."""
        model, x = small
        memory = torch.randn(1, 5, 8, dtype=torch.float64)

        def attending(x: Tensor) -> Tensor:
            queries = model.project(x)
            keys = memory.expand(len(x), -1, -1)
            added = model.attention(queries, keys, keys, need_weights=False)[0]
            return model.head((queries + added).mean(1))

        method = partial(AttentionRollout, attending, normalize_rows=False)
        with pytest.raises(UnsupportedOperationError, match=r"No attention .* 'x'"):
            method().attribute(x, 1)
        account = method(with_identity=True).account(x, 1)
        ones = torch.ones_like(account.total)
        torch.testing.assert_close(account.total, 2 * ones)
        torch.testing.assert_close(account.of(INPUTS), ones)
        torch.testing.assert_close(account.of(Reason.CONSTANT.value), ones)
