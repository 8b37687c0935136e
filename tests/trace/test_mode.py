"""The trace sees every operation between the inputs and the score, or refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import ConservativeLRP, GenericAttentionRelevance, TransformerAttribution
from captum_transformer.errors import InvalidInputError, NoAttentionError, UnseenOperationError
from captum_transformer.trace.mode import Trace
from tests.trace.attention_forms import (
    CLASSES,
    HEADS,
    WIDTH,
    Attention,
    attending,
    embeddings,
    same_weights,
)


@pytest.fixture
def x() -> Tensor:
    return embeddings()


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        weights = torch.softmax(q @ k.mT, -1)
        ctx.save_for_backward(weights)
        return weights @ v

    @staticmethod
    def backward(ctx, gradient):
        (weights,) = ctx.saved_tensors
        return None, None, weights.mT @ gradient


def test_operations_that_cannot_be_seen_are_refused(x):
    class Unseen(Attention):
        def attend(self, q, k, v):
            return _Hidden.apply(q, k, v)

    _, model = same_weights(Unseen)
    with pytest.raises(UnseenOperationError, match=r"_HiddenBackward.*attn_implementation='sdpa'"):
        GenericAttentionRelevance(model).attribute(x, target=0)


def test_a_model_without_attention_is_refused(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(5 * WIDTH, CLASSES)).double()
    with pytest.raises(NoAttentionError, match=r"Looked for: .*scaled_dot_product_attention"):
        GenericAttentionRelevance(model).attribute(x, target=0)


def test_no_mode_remains_after_an_error(x):
    before = torch.overrides._get_current_function_mode_stack()
    model = attending(lambda x: x / 0 if x.sum() else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        GenericAttentionRelevance(model).attribute(torch.zeros_like(x), target=0)
    assert torch.overrides._get_current_function_mode_stack() == before
    with Trace():
        assert isinstance(torch.zeros(1) + 1, Tensor)


class OnIds(nn.Module):
    """Changes its token ids, then looks up their embeddings."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.block, self.change = nn.Embedding(10, WIDTH), Attention(), change

    def forward(self, ids):
        return self.block(self.table(self.change(ids)))


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: ids.long(),
        lambda ids: ids.int(),
        lambda ids: ids.clamp(min=0),
        lambda ids: ids.view(-1, 5),
        lambda ids: torch.where(ids > 20, 0, ids),
    ],
)
def test_token_ids_may_be_cast_clamped_and_reshaped(change):
    ids = torch.randint(1, 10, (3, 5), dtype=torch.int32)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(OnIds(change)).attribute(ids, target=1),
            method(OnIds(lambda ids: ids)).attribute(ids, target=1),
        )


def test_outputs_may_be_picked_by_the_token_ids():
    token_ids = torch.randint(0, 10, (2, 4))

    class Likelihood(OnIds):
        def forward(self, ids):
            picked = self.change(ids)
            hidden = self.block.out(self.table(ids))
            hidden = hidden + F.scaled_dot_product_attention(hidden, hidden, hidden)
            scores = (hidden @ self.table.weight.mT).log_softmax(-1)
            return scores.gather(-1, picked[..., None])[..., 0].sum(-1)

    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(Likelihood(lambda ids: ids)).attribute(token_ids),
            method(Likelihood(lambda _: token_ids)).attribute(token_ids),
        )


def test_parts_that_the_target_does_not_depend_on_are_left_out(x):
    class Auxiliary(Attention):
        def forward(self, x, unused):
            q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            side = self.attend(k, q, v).sum((1, 2, 3))
            return {"scores": super().forward(x), "auxiliary": side + unused.sum((1, 2))}

    _, model = same_weights(Auxiliary)
    reference, _ = same_weights(Attention)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        with pytest.raises(InvalidInputError, match="'unused'"):
            method(model).attribute((x, x.clone()), target=1)
        used = method(model).attribute(x, target=1, additional_forward_args=(x.clone(),))
        torch.testing.assert_close(used, method(reference).attribute(x, target=1))
