"""Attention of other packages is described by its arguments and the order of its dimensions."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import extend
from captum_transformer.errors import UnsupportedOperationError
from tests.extend.models import methods, tokens


class Flash(torch.autograd.Function):
    """Attention as in the flash-attn package: tokens before heads, and no visible operation."""

    @staticmethod
    def forward(ctx, q, k, v, scale, causal):
        with torch.enable_grad():
            ctx.given = [t.detach().requires_grad_() for t in (q, k, v)]
            turned = (t.transpose(1, 2) for t in ctx.given)
            ctx.out = nn.functional.scaled_dot_product_attention(
                *turned, is_causal=causal, scale=scale
            ).transpose(1, 2)
        return ctx.out.detach().clone()

    @staticmethod
    def backward(ctx, gradient):
        return *torch.autograd.grad(ctx.out, ctx.given, gradient, retain_graph=True), None, None


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, softcap=0.0):
    """Attention with the signature of `flash_attn.flash_attn_func`, without its last arguments."""
    q = nn.functional.dropout(q, dropout_p)
    q = q if not softcap else q * softcap  # an example of an effect without a description
    return Flash.apply(q, k, v, softmax_scale, causal)


ARGUMENTS = "query/q key/k value/v dropout_p scale/softmax_scale is_causal/causal softcap"
BNHD = "samples tokens heads features"


class Attending(nn.Module):
    def __init__(self, attend, **kwargs):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)
        nn.init.normal_(self.qkv.weight)
        self.attend, self.kwargs = attend, kwargs
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).unbind(2)
        x = x + self.attend(q, k, v, **self.kwargs).flatten(2)
        return self.head(x)[:, -1]


def by_torch(q, k, v, **kwargs) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, **kwargs).transpose(1, 2)


@methods
@pytest.mark.parametrize(
    ("kwargs", "of_torch"),
    [
        ({}, {}),
        ({"dropout_p": 0.5, "causal": True}, {"is_causal": True}),
        ({"softmax_scale": 0.3}, {"scale": 0.3}),
    ],
)
def test_attention_of_a_kernel_with_tokens_before_heads(method, kwargs, of_torch):
    flash = extend.operation(ARGUMENTS, extend.Kind.ATTENTION, layout=BNHD)(flash_attn_func)
    found = method(Attending(flash, **kwargs)).attribute(tokens(), 1)
    expected = method(Attending(by_torch, **of_torch)).attribute(tokens(), 1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@methods
def test_attention_with_its_own_argument_names(method):
    @extend.operation("query/q key/k value/v", extend.Kind.ATTENTION)
    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    def attend(q, k, v):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return own(v=v, k=k, q=q).transpose(1, 2)

    found = method(Attending(attend)).attribute(tokens(), 1)
    torch.testing.assert_close(found, method(Attending(by_torch)).attribute(tokens(), 1))


@methods
@pytest.mark.parametrize(
    ("arguments", "layout", "kwargs"),
    [
        (ARGUMENTS, None, {}),  # heads for tokens
        (ARGUMENTS, "tokens samples heads features", {}),
        ("query/q key/k value/v", BNHD, {"causal": True}),
        ("query/q key/k value/v", BNHD, {"softmax_scale": 0.3}),
        (ARGUMENTS, BNHD, {"softcap": 0.5}),
        ("key/q query/k value/v", BNHD, {}),
    ],
)
def test_attention_that_is_not_as_described_is_refused(method, arguments, layout, kwargs):
    wrong = extend.operation(arguments, extend.Kind.ATTENTION, layout=layout)(flash_attn_func)
    with pytest.raises(UnsupportedOperationError, match="`flash_attn_func` is described as atten"):
        method(Attending(wrong, **kwargs)).attribute(tokens(), 1)


@pytest.mark.parametrize(
    ("arguments", "kind", "layout", "message"),
    [
        ("query key", extend.Kind.ATTENTION, None, "query, key and value"),
        ("input", extend.Kind.ENTRYWISE, BNHD, "for ENTRYWISE"),
        ("query key value", extend.Kind.ATTENTION, "samples tokens features", "heads, tokens and"),
        ("query key value", extend.Kind.ATTENTION, "tokens tokens heads features", "once"),
    ],
)
def test_bad_descriptions_of_attention_are_refused(arguments, kind, layout, message):
    with pytest.raises(ValueError, match=message):
        extend.operation(arguments, kind, layout=layout)
