"""Attention is recognised however it is written, with its probabilities and options."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import ConservativeLRP, GenericAttentionRelevance, TransformerAttribution
from captum_transformer.calling import Arguments
from captum_transformer.trace import ExplicitAttention, FusedAttention, traced_forward
from captum_transformer.trace.heads import by_head
from tests.trace.attention_forms import (
    CLASSES,
    HEADS,
    WIDTH,
    WRITTEN,
    Attention,
    Batched,
    Grouped,
    Softmaxed,
    embeddings,
    same_weights,
)


@pytest.fixture
def x() -> Tensor:
    return embeddings()


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize(
    "method", [GenericAttentionRelevance, TransformerAttribution, ConservativeLRP]
)
def test_attention_is_the_same_however_it_is_written(kind, method, x):
    reference, other = same_weights(kind)
    # Batched computes its softmax in float32.
    bound = {"rtol": 1e-5, "atol": 1e-7} if kind is Batched else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(
        method(other).attribute(x, target=1), method(reference).attribute(x, target=1), **bound
    )


@pytest.mark.parametrize("kind", [Attention, *WRITTEN])
def test_the_probabilities_of_a_call_are_those_of_the_model(kind, x):
    _, model = same_weights(kind)
    q, k, _ = model.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    expected = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    with traced_forward(model, Arguments(x)) as forward:
        (call,) = forward.calls
        assert isinstance(
            call, FusedAttention if kind in (Attention, Grouped) else ExplicitAttention
        )
        probabilities = by_head(call, call.probabilities(slice(None)))
    torch.testing.assert_close(probabilities, expected.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_mask": torch.tensor([[True] * 4 + [False]])},
        {"attn_mask": torch.randn(3, 1, 5, 5, dtype=torch.float64)},
        {"is_causal": True},
        {"scale": 0.3},
        {"dropout_p": 0.9},
    ],
    ids=["bool mask", "bias", "causal", "scale", "dropout"],
)
def test_the_options_of_fused_attention_are_honoured(options, x):
    class Fused(Attention):
        def attend(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, **options)

    class Written(Attention):
        def attend(self, q, k, v):
            scores = q @ k.transpose(-1, -2) * options.get("scale", q.shape[-1] ** -0.5)
            mask = options.get("attn_mask")
            if options.get("is_causal"):
                mask = torch.ones(5, 5, dtype=torch.bool).tril()
            if mask is not None and mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, -math.inf)
            elif mask is not None:
                scores = scores + mask
            return scores.softmax(-1) @ v

    _, fused = same_weights(Fused)
    _, written = same_weights(Written)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(fused).attribute(x, target=0), method(written).attribute(x, target=0)
        )


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_equals_its_parts(need_weights, batch_first, x):
    class Multihead(Attention):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, 0.5, batch_first=batch_first)

        def forward(self, x):
            self.attention.in_proj_weight.data.copy_(self.qkv.weight)
            self.attention.in_proj_bias.data.copy_(self.qkv.bias)
            self.attention.out_proj.load_state_dict(self.out.state_dict())
            y = x if batch_first else x.transpose(0, 1)
            y = self.attention(y, y, y, need_weights=need_weights)[0]
            return self.head((x + (y if batch_first else y.transpose(0, 1)))[:, 0])

    torch.manual_seed(0)
    reference, other = Attention().double(), Multihead().double()
    other.load_state_dict(reference.state_dict(), strict=False)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(other).attribute(x, target=1), method(reference).attribute(x, target=1)
        )


def test_grouped_heads_equal_repeated_heads(x):
    class Shared(Attention):
        def attend(self, q, k, v):
            return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)

    class Repeated(Attention):
        def attend(self, q, k, v):
            k, v = (t[:, :1].repeat_interleave(HEADS, 1) for t in (k, v))
            return F.scaled_dot_product_attention(q, k, v)

    _, shared = same_weights(Shared)
    _, repeated = same_weights(Repeated)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(shared).attribute(x, target=1), method(repeated).attribute(x, target=1)
        )


def test_calls_have_layers_and_module_names(x):
    model = nn.Sequential(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 8, batch_first=True), 2),
        nn.Flatten(),
        nn.Linear(5 * WIDTH, CLASSES),
    ).double()
    with traced_forward(model, Arguments(x)) as forward:
        assert [call.layer for call in forward.calls] == [0, 1]
        assert [call.module for call in forward.calls] == [
            "0.layers.0.self_attn",
            "0.layers.1.self_attn",
        ]
        assert forward.calls[0].map_shape() == (3, HEADS, 5, 5)


@pytest.mark.parametrize("tokens", [1, WIDTH // HEADS, WIDTH, 3])
def test_axes_of_equal_length_are_not_confused(tokens):
    """There are as many tokens as samples, as features, as features of a head, or only one."""
    x = torch.randn(3, tokens, WIDTH, dtype=torch.float64)

    class Deep(Softmaxed):
        def forward(self, x):
            for _ in range(3):
                q, k, v = self.qkv(x).chunk(3, -1)
                x = x + self.out(self.attend(q, k, v))
            return self.head(x[:, 0])

    class DeepFused(Deep):
        attend = Attention.attend

    explicit, fused = same_weights(Deep)[1], same_weights(DeepFused)[1]
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(explicit).attribute(x, target=1), method(fused).attribute(x, target=1)
        )
