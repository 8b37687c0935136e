"""What users add: functions that the table lacks, and operations that the trace can't see."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
    extend,
)
from captum_transformer.calling.arguments import Arguments
from captum_transformer.errors import (
    ConservationError,
    InvalidRuleError,
    UnseenOperationError,
    UnsupportedOperationError,
)
from captum_transformer.trace import traced_forward

METHODS = {
    "AttnLRP": AttnLRP,
    "ConservativeLRP": ConservativeLRP,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "TransformerAttribution": TransformerAttribution,
    "full LRP": lambda model: TransformerAttribution(model, propagate_to_input=True),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Weighed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        _, weight = ctx.saved_tensors
        return gradient @ weight, None


@extend.operation("input", extend.Kind.ENTRYWISE)
def cubed(x: Tensor) -> Tensor:
    return Cubed.apply(x)


@extend.operation("input weight", extend.Kind.PRODUCT)
def weighed(x: Tensor, weight: Tensor) -> Tensor:
    return Weighed.apply(x, weight)


class Model(nn.Module):
    def __init__(self, activation, linear=nn.functional.linear):
        super().__init__()
        torch.manual_seed(0)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3, bias=False)
        self.activation, self.linear = activation, linear
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x, x, x)[0]
        return self.linear(self.activation(x)[:, 0], self.head.weight)


def tokens() -> Tensor:
    return torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@methods
def test_a_function_of_ones_own_is_an_operation_like_any_other(method):
    found = method(Model(cubed, weighed)).attribute(tokens(), 1)
    torch.testing.assert_close(found, method(Model(lambda x: x**3)).attribute(tokens(), 1))


def test_the_name_of_ones_own_function_does_not_matter():
    @extend.operation("input exponent", extend.Kind.HOMOGENEOUS)
    def pow(x, exponent):  # noqa: A001 - torch's is a denominator for such exponents
        return x.abs() ** -exponent

    with traced_forward(lambda x: pow(x, -1), Arguments(torch.ones(1, 2))) as forward:
        assert [operation.kind for operation in forward.tape.operations] == [
            extend.Kind.HOMOGENEOUS
        ]


@methods
def test_without_a_description_it_is_refused(method):
    with pytest.raises(UnseenOperationError, match="Cubed"):
        method(Model(Cubed.apply)).attribute(tokens(), 1)


def test_outside_of_explanations_it_does_what_it_did():
    x = tokens().requires_grad_()
    (gradient,) = torch.autograd.grad(cubed(x).sum(), x)
    torch.testing.assert_close(gradient, 3 * x.detach() ** 2)
    assert cubed.__name__ == "cubed"


def rare(x: Tensor) -> Tensor:
    return torch.atan2(x, torch.ones_like(x))


@methods
def test_a_described_torch_function_has_a_rule_in_all_passes(method):
    expected = method(Model(extend.operation("input", extend.Kind.ENTRYWISE)(rare)))
    with extend.describe_function(torch.atan2, "input other", extend.Kind.ENTRYWISE):
        found = method(Model(rare)).attribute(tokens(), 1)
    torch.testing.assert_close(found, expected.attribute(tokens(), 1))


@methods
def test_a_function_that_is_described_no_more_is_refused(method):
    with pytest.raises(UnsupportedOperationError, match="`atan2`"):
        method(Model(rare)).attribute(tokens(), 1)


def test_what_the_table_has_is_not_described_again():
    with pytest.raises(ValueError, match="`relu` is in the table already, as HOMOGENEOUS"):
        extend.describe_function(torch.relu, "input", extend.Kind.MOVE)
    with pytest.raises(ValueError, match="`lerp` is already supported"):
        extend.describe_function(torch.lerp, "input other weight", extend.Kind.ENTRYWISE)


# Operations of one signal, of two, and of a signal and constants.
RULED = pytest.mark.parametrize(
    ("kind", "named"),
    [
        (extend.Kind.ENTRYWISE, "`pow` in `Model`, on tensors of shapes [(2, 4, 8)]"),
        (extend.Kind.ADD, "`add` in `Model`, on tensors of shapes [(2, 4, 8), (2, 4, 8)]"),
        (extend.Kind.PRODUCT, "`linear` in `Model`, on tensors of shapes [(2, 8)]"),
    ],
)


def explained_with(kind, rule) -> Tensor:
    model = Model(lambda x: x**3)
    return extend.RelevanceMethod(model, {kind: rule}).attribute(tokens(), 1)


@RULED
@pytest.mark.parametrize(
    "rule",
    [
        lambda o, r: [],
        lambda o, r: extend.Shares([r] * (len(o.traced()) + 1)),
        lambda o, r: extend.Shares([r.sum(0)] * len(o.traced())),
        lambda o, r: [r.new_zeros(()) for _ in o.traced()],
        lambda o, r: [0.0 for _ in o.traced()],
        lambda o, r: r,
        lambda o, r: None,
    ],
)
def test_shares_that_do_not_fit_the_operands_are_refused(kind, named, rule):
    with pytest.raises(InvalidRuleError, match=re.escape(f"The rule for {named} returned ")):
        explained_with(kind, rule)


@RULED
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_rule_that_makes_no_number_of_numbers_is_named(kind, named, wrong, everywhere):
    def rule(operation, relevance):
        shares = [torch.zeros(o.size, dtype=relevance.dtype) for o, _ in operation.traced()]
        for share in shares[: None if everywhere else 1]:
            share[(slice(None) if everywhere else 0, ...)] = wrong
        return extend.Shares(shares)

    with pytest.raises(ConservationError, match=re.escape(f"The rule for {named} returns NaN or")):
        explained_with(kind, rule)


@pytest.mark.parametrize("where", ["parameter", "input", "activation"])
def test_no_rule_is_blamed_for_what_the_model_computes(where):
    model, x = Model(lambda x: x / 0 * 0 if where == "activation" else x**3), tokens()
    with torch.no_grad():
        if where == "parameter":
            model.attend.in_proj_weight[0, 0] = math.nan
        if where == "input":
            x[0, 1] = math.inf
    assert not torch.isfinite(model(x)).all()
    found = TransformerAttribution(model, propagate_to_input=True).attribute(x, 1)
    assert not torch.isfinite(found).all()


def zero_over_zero(operation):
    result = operation.run(lambda o: o.tensor)
    vanishing = result - result.detach()
    return result + (vanishing / vanishing.detach()).nan_to_num()


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (lambda o: o.run(lambda x: x.tensor)[..., :-1], r"returned \[\(2, 4, 15\)\], not"),
        (lambda o: o.run(lambda x: x.tensor).sum(), r"returned \[\(\)\], not \[\(2, 4, 16\)\]"),
        (lambda o: None, "returned NoneType"),
        (lambda o: [o.run(lambda x: x.tensor)], "returned"),
        (lambda o: o.run(lambda x: x.tensor) * 1.1, "returned other numbers"),
        (lambda o: o.run(lambda x: x.tensor) * torch.nan, "returned other numbers"),
        (zero_over_zero, "has a gradient that is NaN or infinite"),
    ],
)
def test_a_rule_of_a_gradient_that_changes_more_than_the_gradient_is_refused(rule, why):
    layer = nn.Linear(8, 16).double()
    method = extend.GradientMethod(
        lambda x: layer(x).sum((1, 2)).unsqueeze(1),
        {extend.Kind.PRODUCT: rule},
    )
    with pytest.raises(InvalidRuleError, match=f"The rule for `linear`.* {why}"):
        method.attribute(torch.randn(2, 4, 8, dtype=torch.float64), target=0)


@pytest.mark.parametrize(
    "maps",
    [
        lambda call, rows: call.probabilities(rows)[..., :-1],
        lambda call, rows: call.probabilities(rows)[..., 0, :],
        lambda call, rows: None,
    ],
)
def test_a_map_that_does_not_fit_the_call_is_refused(maps):
    class Mapped(extend.MapMethod):
        def maps(self, explained, calls):
            return maps

    with pytest.raises(InvalidRuleError, match=r"`maps` of Mapped returned .* \(4, 4, 4\)"):
        Mapped(Model(torch.tanh)).attribute(tokens(), 1)


class Flash(torch.autograd.Function):
    """Attention as the flash-attn package has it: tokens before heads, and nothing to be seen."""

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
    """With the signature of `flash_attn.flash_attn_func`, but for what comes last."""
    q = nn.functional.dropout(q, dropout_p)
    q = q if not softcap else q * softcap  # stands for anything that has no description
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
def test_attention_by_names_of_its_own(method):
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
def test_descriptions_of_attention_that_can_not_be(arguments, kind, layout, message):
    with pytest.raises(ValueError, match=message):
        extend.operation(arguments, kind, layout=layout)
