"""Accounts of methods with attention maps: the relevance of one row of the maps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
)
from captum_transformer.account import INPUTS, Reason
from captum_transformer.errors import UnsupportedOperationError
from tests.attr.accounts import Small, parts_add_up, small_model
from tests.attr.subjects import SUBJECTS, subject
from tests.attr.tiny_models import images, timm_vit


@pytest.fixture
def small() -> tuple[Small, Tensor]:
    return small_model()


@pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout])
def test_the_class_token_has_its_own_column(method: Callable[..., Any]) -> None:
    explained, x = method(timm_vit()), images()
    account = explained.account(x, 1)
    whole = method(timm_vit(), with_identity=True)
    row = whole.relevance_maps(x, 1)["x", "x"][:, 0]
    torch.testing.assert_close(account.total, row.sum(-1))
    torch.testing.assert_close(account.of(Reason.JOINED.value), row[:, 0])
    torch.testing.assert_close(account.of(INPUTS), explained.attribute(x, 1).sum((1, 2, 3)))
    assert "joined constants: cls_token" in account.shares(by_source=True)


@pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout])
def test_relevance_that_bypasses_attention_has_a_part(method: Callable[..., Any]) -> None:
    model, x = timm_vit(class_token=False, global_pool="avg"), images()
    account, whole = (method(model, with_identity=counts).account(x, 1) for counts in (False, True))
    left_out = account.of(Reason.NO_ATTENTION.value)
    halves = 1 if method is GenericAttentionRelevance else 0.5 ** len(model.blocks)
    torch.testing.assert_close(left_out, torch.full_like(left_out, halves))
    torch.testing.assert_close(account.of(INPUTS) + left_out, whole.of(INPUTS))
    torch.testing.assert_close(account.total, whole.total)


@pytest.mark.parametrize("method", [RawAttention, PartialLRP, AttentionGradCam])
def test_the_account_of_one_layer(method: Callable[..., Any]) -> None:
    explained, x = method(timm_vit()), images()
    account = explained.account(x, 1)
    torch.testing.assert_close(account.of(INPUTS), explained.attribute(x, 1).sum((1, 2, 3)))
    if method is RawAttention:
        torch.testing.assert_close(account.total, torch.ones_like(account.total))
    if method is not AttentionGradCam:  # which leaves learned tokens out
        row = explained.relevance_maps(x, 1)["x", "x"][:, 0]
        torch.testing.assert_close(account.of(Reason.JOINED.value), row[:, 0])


@pytest.mark.parametrize("name", SUBJECTS)
def test_accounts_of_models_add_up(name: str) -> None:
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


def test_concatenated_inputs_have_their_own_tokens(small: Any) -> None:
    """The relevance of one doesn't depend on the other."""
    model, x = small

    def joined(left: Tensor, right: Tensor) -> Tensor:
        return model(torch.cat([left, right], 1))

    # With pooled evidence, each input weights pooled tokens like those behind attention.
    method = partial(GenericAttentionRelevance, pooled_evidence=False)
    account = method(joined).account((x[:, :1], x[:, 1:]), 1)
    whole = method(model).account(x, 1)
    torch.testing.assert_close(account.total, whole.total)
    torch.testing.assert_close(account.of(INPUTS), whole.of(INPUTS))


def test_constant_keys_and_values(small: Any) -> None:
    """Queries attend to learned tokens alone, which get all relevance of attention."""
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
