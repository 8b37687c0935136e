"""Attention weights are held, or softened, wherever they are applied: to signals or to constants.

Constants are relative values or positions. Weights may be normalised over the keys, or over the
queries, and replaced by the largest one. Methods of maps refuse weights of constants.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F

from captum_transformer import (
    GIM,
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
    LibraGrad,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import UnsupportedOperationError
from tests.rules.by_hand import by_autograd, doubles

X, HEADS, TOKENS, WIDTH = doubles(2, 4, 6, seed=1), 2, 4, 3
QKV, RELATIVE = doubles(18, 6, seed=2), doubles(TOKENS, TOKENS, WIDTH, seed=3)
HEAD, MIX = doubles(HEADS, TOKENS, WIDTH, seed=4), doubles(HEADS, HEADS, seed=5)


class Softened(torch.autograd.Function):
    """The softmax, with the gradient that it has at twice the temperature, but not its factor."""

    @staticmethod
    def forward(ctx, scores, dim):
        ctx.dim = dim
        ctx.save_for_backward(scores)
        return scores.softmax(dim)

    @staticmethod
    def backward(ctx, gradient):
        (scores,) = ctx.saved_tensors
        weights = (scores / 2).softmax(ctx.dim)
        return weights * (gradient - (weights * gradient).sum(ctx.dim, keepdim=True)), None


def by_rows(weights):
    rows = weights.permute(2, 0, 1, 3).flatten(1, 2) @ RELATIVE
    return rows.unflatten(1, (-1, HEADS)).permute(1, 2, 0, 3)


CONSTANT = {
    "einsum": lambda p: torch.einsum("bhij,ijd->bhid", p, RELATIVE),
    "matmul": by_rows,
    "product and sum": lambda p: (p.unsqueeze(-1) * RELATIVE).sum(-2),
    "outer product and sum": lambda p: torch.einsum("bhij,ijd->bhijd", p, RELATIVE).sum(-2),
    "after other numbers": lambda p: torch.einsum("bhij,ijd->bhid", p * 0.5, 2 * RELATIVE),
    "after heads are mixed": lambda p: torch.einsum(
        "bgij,ijd->bgid", torch.einsum("bhij,hg->bgij", p, MIX), RELATIVE
    ),
}


def straight_through(scores, soft):
    weights = soft(scores, -1)
    hard = torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)
    return hard - weights.detach() + weights


NORMALISED = {
    "over keys, straight through": straight_through,
    "over keys": lambda scores, soft: soft(scores, -1),
    "over queries": lambda scores, soft: soft(scores, -2),
}


def model(x, normalise, applied, *, signal=True, soft=torch.softmax, by=lambda t: t, of=None):
    """One attention call; `by` is applied to factors of products, and `of` to the weights."""
    q, k, v = (x @ QKV.T).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
    weights = normalise(by(q) @ by(k).mT, soft)
    weights = weights if of is None else of(weights)
    out = applied(weights) + (by(weights) @ by(v) if signal else 0.0)
    return (out * HEAD).sum((1, 2))


def halved(tensor):
    return tensor / 2 + (tensor / 2).detach()


@pytest.mark.parametrize("normalise", NORMALISED.values(), ids=NORMALISED)
@pytest.mark.parametrize("applied", CONSTANT.values(), ids=CONSTANT)
def test_weights_are_held_or_softened_in_every_notation(applied, normalise):
    def read(method):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return method(lambda x: model(x, normalise, applied)).attribute(X, 1)

    (held,) = by_autograd(lambda x: model(x, normalise, applied, of=torch.detach)[:, 1], X)
    for method in (ConservativeLRP, LibraGrad):
        torch.testing.assert_close(read(method), held)
    options = {"soft": Softened.apply, "by": halved}
    (softened,) = by_autograd(lambda x: model(x, normalise, applied, **options)[:, 1], X)
    torch.testing.assert_close(read(GIM), softened)


@pytest.mark.parametrize("normalise", NORMALISED.values(), ids=NORMALISED)
@pytest.mark.parametrize("applied", CONSTANT.values(), ids=CONSTANT)
def test_gim_softens_weights_of_constants_alone(applied, normalise):
    options = {"signal": False, "soft": Softened.apply, "by": halved}
    (softened,) = by_autograd(lambda x: model(x, normalise, applied, **options)[:, 1], X)
    found = GIM(lambda x: model(x, normalise, applied, signal=False)).attribute(X, 1)
    torch.testing.assert_close(found, softened)


def heads_first(part):
    return part.transpose(0, 1).flatten(0, 1)


# How heads lie, and back to samples first.
LAYOUTS = {
    "heads apart": (lambda part: part, lambda out: out),
    "heads with samples": (lambda part: part.flatten(0, 1), lambda o: o.unflatten(0, (-1, HEADS))),
    "heads first": (heads_first, lambda o: o.unflatten(0, (HEADS, -1)).transpose(0, 1)),
    "one head": (lambda part: part.transpose(1, 2).flatten(2), lambda out: out),
}


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    "method", [GenericAttentionRelevance, TransformerAttribution, AttentionRollout, RawAttention]
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_methods_of_maps_refuse_weights_of_constants_in_every_layout(name, method, samples):
    lay, back = LAYOUTS[name]

    def score(x):
        parts = (x @ QKV.T).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        q, k, v = map(lay, parts)
        weights = (q @ k.mT).softmax(-1)
        out = weights @ v + torch.einsum("...ij,ijd->...id", weights, doubles(4, 4, v.shape[-1]))
        return back(out).flatten(1)

    with pytest.raises(UnsupportedOperationError, match="applies attention weights to constants"):
        method(score).attribute_tokens(X[:samples], 0)


def test_a_mean_weighted_by_similarities_of_two_towers_mixes_no_tokens():
    def score(a, b):
        (one, _), (good, bad) = (
            F.scaled_dot_product_attention(x, x, x)[:, :2].unbind(1) for x in (a, b)
        )
        similar = torch.stack([(one * good).sum(-1), (one * bad).sum(-1)], -1)
        return similar.softmax(-1) @ torch.tensor([1.0, 2.0]).double()

    found = GenericAttentionRelevance(score).attribute_tokens((X, doubles(2, 4, 6, seed=9)))
    assert all(tokens.any() for tokens in found)


def joined_sums(p, v):
    return p[..., :1] * v[..., :1, :] + p[..., 1:] @ v[..., 1:, :]


ONE_BY_ONE = {
    "a global token beside others": joined_sums,
    "cut out": lambda p, v: sum(p[..., j : j + 1] * v[..., j : j + 1, :] for j in range(TOKENS)),
    "unbound": lambda p, v: sum(
        one[..., None] * other.unsqueeze(-2)
        for one, other in zip(p.unbind(-1), v.unbind(-2), strict=True)
    ),
    "scaled and turned": lambda p, v: sum(
        (w * one.mT).mT for w, one in zip(p.mT.split(1, -2), v.split(1, -2), strict=True)
    ),
    "stacked": lambda p, v: torch.stack(
        [p[..., j : j + 1] * v[..., j : j + 1, :] for j in range(TOKENS)]
    ).sum(0),
}


def applied_one_by_one(x, apply, of=None):
    """Two layers; in the first one, the weight of a token is applied to it apart from others."""
    for place, parts in enumerate((QKV, doubles(18, 6, seed=6))):
        q, k, v = (x @ parts.T).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT).softmax(-1)
        weights = weights if of is None else of(weights)
        made = weights @ v if place else apply(weights, v)
        x = x + made.transpose(1, 2).flatten(2)
    return x.flatten(1)


@pytest.mark.parametrize("apply", ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_weights_of_single_tokens_are_held(apply):
    (held,) = by_autograd(lambda x: applied_one_by_one(x, apply, torch.detach)[:, 1], X)
    for method in (ConservativeLRP, LibraGrad):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = method(lambda x: applied_one_by_one(x, apply)).attribute(X, 1)
        torch.testing.assert_close(found, held)


@pytest.mark.parametrize("apply", ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_methods_of_maps_refuse_weights_of_single_tokens(apply):
    for method in (GenericAttentionRelevance, TransformerAttribution, AttentionRollout):
        with pytest.raises(UnsupportedOperationError):
            method(lambda x: applied_one_by_one(x, apply)).attribute(X, 1)


@pytest.mark.parametrize("layer", [F.linear, lambda x, w: x @ w.T], ids=["known", "unknown"])
def test_experts_are_no_tokens_whose_weights_are_held(layer):
    routed, experts = doubles(3, 6, seed=7), doubles(3, 6, 6, seed=8)

    def score(x, of=torch.clone):
        q, k, v = (x @ QKV.T).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        x = x + (of((q @ k.mT).softmax(-1)) @ v).transpose(1, 2).flatten(2)
        shares = layer(x, routed).softmax(-1).unbind(-1)
        return sum(p[..., None] * layer(x, w) for p, w in zip(shares, experts, strict=True))

    (expected,) = by_autograd(lambda x: score(x, torch.detach).flatten(1)[:, 1], X)
    found = ConservativeLRP(lambda x: score(x).flatten(1)).attribute(X, 1)
    torch.testing.assert_close(found, expected)


def cut(weights):
    """Keys in two chunks, in another order."""
    return weights[..., KEYS].unflatten(-1, (2, 2)).transpose(2, 3)


def apply_cut(chunks, values):
    return torch.einsum("bhcqk,bhckd->bhqd", chunks, values[:, :, KEYS].unflatten(2, (2, 2)))


def by_batched_products(queries, keys):
    """Heads are merged with samples, so that it isn't known any more which are heads."""
    made = torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).mT)
    return made.unflatten(0, (-1, HEADS))


KEYS = torch.tensor([2, 0, 3, 1])
GATE = doubles(HEADS, 6, seed=6)
# What is done to weights before they are cut up, and after; `by` is applied to factors of products.
CHANGED = {
    "a gate before": (lambda p, g, by: by(p) * by(g), lambda chunks, g, by: chunks),
    "a gate after": (lambda p, g, by: p, lambda chunks, g, by: by(chunks) * by(g[:, :, None])),
    "divided by a gate": (lambda p, g, by: p, lambda chunks, g, by: chunks / g[:, :, None]),
    "a number": (lambda p, g, by: p, lambda chunks, g, by: chunks * 0.5),
    "numbers of heads": (lambda p, g, by: p, lambda chunks, g, by: chunks * HEAD[:, :1, :1, None]),
    "a mask": (lambda p, g, by: p, lambda chunks, g, by: chunks.masked_fill(chunks < 0.1, 0.0)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_weights_that_are_scaled_and_cut_up_are_held_or_softened(name):
    before, after = CHANGED[name]

    def score(x, *, soft=torch.softmax, by=lambda t: t, hold=lambda t: t):
        q, k, v = (x @ QKV.T).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        gate = (x @ GATE.T).mT[..., None].sigmoid()
        weights = before(soft(by(q) @ by(k).mT, -1), gate, by)
        weights = hold(after(cut(weights), gate, by))
        return (apply_cut(by(weights), by(v)) * HEAD).sum((1, 2))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = [method(score).attribute(X, 1) for method in (ConservativeLRP, LibraGrad)]
    (expected,) = by_autograd(lambda x: score(x, hold=torch.detach)[:, 1], X)
    for found in held:
        torch.testing.assert_close(found, expected)
    if name != "divided by a gate":  # where GIM would need another rule
        (softened,) = by_autograd(lambda x: score(x, soft=Softened.apply, by=halved)[:, 1], X)
        torch.testing.assert_close(GIM(score).attribute(X, 1), softened)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("method", [ConservativeLRP, LibraGrad])
def test_weights_are_held_where_it_is_unknown_which_dimensions_are_heads(method, gated):
    def score(x, hold=lambda t: t):
        q, k, v = (x @ QKV.T).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        weights = by_batched_products(q, k).softmax(-1)
        gate = (x @ GATE[0]).sigmoid()[:, None, :, None]
        weights = hold(weights * gate if gated else weights)
        return (torch.einsum("bhij,bjd->bhid", weights, v[:, 0]) * HEAD).sum((1, 2))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = method(score).attribute(X, 1)
    (expected,) = by_autograd(lambda x: score(x, torch.detach)[:, 1], X)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", [AttentionRollout, GenericAttentionRelevance, RawAttention])
def test_methods_of_maps_say_that_queries_and_heads_are_not_known(method):
    """These weights are whole, not cut up, and are applied to values."""

    def score(x):
        x = x + (x @ x.mT).softmax(-1) @ x
        q, k, v = (x @ QKV.T).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        weights = by_batched_products(q, k).softmax(-1)
        return (x[:, None, :, :WIDTH] + torch.einsum("bhij,bjd->bhid", weights, v[:, 0]))[:, 1, 2]

    with pytest.raises(UnsupportedOperationError, match="not known which dimensions are heads"):
        method(score).attribute_tokens(X, 0)


ONE_MAP = {
    "sum": lambda p, g: (p * g.mT[..., None]).sum(1),
    "einsum": lambda p, g: torch.einsum("bhij,bih->bij", p, g),
    "matmul": lambda p, g: (g.unsqueeze(2) @ p.transpose(1, 2)).squeeze(2),
}


@pytest.mark.parametrize("method", [ConservativeLRP, LibraGrad, GIM, GenericAttentionRelevance])
@pytest.mark.parametrize("name", ONE_MAP)
def test_maps_that_a_gate_of_heads_sums_up_are_one_map(name, method):
    def score(gated):
        def run(x):
            q, k, v = F.linear(x, QKV).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
            gate = F.linear(x, GATE).sigmoid()
            return (gated((q @ k.mT).softmax(-1), gate) @ v[:, 0] * HEAD[0]).sum(1)

        return run

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, found = (method(score(ONE_MAP[n])).attribute(X, 1) for n in ("sum", name))
    torch.testing.assert_close(found, expected)


def attended(x):
    return x + F.scaled_dot_product_attention(x, x, x)


def from_places(weights, places, values):
    picked = torch.take_along_dim(values.unsqueeze(2), places[..., None], 3)
    return (weights.unsqueeze(-2) @ picked).squeeze(-2)


# Some of the weights, chosen by their size, and their places.
CHOSEN = {
    "topk": lambda p: p.topk(2, -1),
    "sort": lambda p: [part[..., 1:] for part in p.sort(-1)],
    "max": lambda p: p.max(-1, keepdim=True),
    "amax": lambda p: (p.amax(-1, keepdim=True), p.argmax(-1, keepdim=True)),
    "kthvalue": lambda p: p.kthvalue(TOKENS, -1, keepdim=True),
}


@pytest.mark.parametrize("choose", CHOSEN.values(), ids=CHOSEN)
def test_weights_that_are_chosen_by_their_size_are_held_or_softened(choose):
    def score(x, *, soft=torch.softmax, by=lambda t: t, hold=lambda t: t, look_up=False):
        q, k, v = F.linear(x, QKV).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        weights = soft(by(q) @ by(k).mT, -1)
        chosen, places = choose(weights)
        chosen = weights.gather(-1, places) if look_up else chosen
        return (from_places(by(hold(chosen)), places, by(v)) * HEAD).sum((1, 2))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = [method(score).attribute(X, 1) for method in (ConservativeLRP, LibraGrad)]
        softened = GIM(score).attribute(X, 1)
    (expected,) = by_autograd(lambda x: score(x, hold=torch.detach, look_up=True)[:, 1], X)
    for found in held:
        torch.testing.assert_close(found, expected)
    options = {"soft": Softened.apply, "by": halved, "look_up": True}
    (expected,) = by_autograd(lambda x: score(x, **options)[:, 1], X)
    torch.testing.assert_close(softened, expected)
    if choose is not CHOSEN["sort"]:  # whose places are read
        with pytest.raises(UnsupportedOperationError, match="softmax weights in a layout"):
            AttentionRollout(lambda x: score(attended(x))).attribute(X, 1)


@pytest.mark.parametrize("read", [lambda p: p.topk(2, -1)[0], lambda p: p[:, 1:3]])
def test_weights_of_a_number_of_each_token_are_held_where_some_are_cut_out(read):
    def score(x, hold=lambda t: t):
        x = x + F.scaled_dot_product_attention(x, x.detach(), x)
        weights = F.linear(x, GATE[:1]).squeeze(-1).softmax(-1)
        return (hold(read(weights))[..., None] * x[:, :2]).flatten(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ConservativeLRP(score).attribute(X, 1)

    def held(x):
        weights = (x @ x.mT / X.shape[-1] ** 0.5).softmax(-1).detach()
        x = x + weights @ x
        weights = (x @ GATE[:1].T).squeeze(-1).softmax(-1).detach()
        return (read(weights)[..., None] * x[:, :2]).flatten(1)[:, 1]

    (expected,) = by_autograd(held, X)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UnsupportedOperationError, match="softmax weights multiply a signal"):
        GenericAttentionRelevance(score).attribute(X, 1)


@pytest.mark.parametrize("swapped", [False, True])
def test_weights_over_keys_and_over_queries_are_held_in_each_order(swapped):
    def score(x, hold=lambda t: t):
        q, k, v = F.linear(x, QKV).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT
        one, other = scores.softmax(-1 - swapped), scores.softmax(-2 + swapped)
        return ((hold(one * other) @ v) * HEAD).sum((1, 2))

    found = ConservativeLRP(score).attribute(X, 1)
    (expected,) = by_autograd(lambda x: score(x, torch.detach)[:, 1], X)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UnsupportedOperationError, match="not read as attention"):
        GenericAttentionRelevance(lambda x: score(attended(x))).attribute(X, 1)
