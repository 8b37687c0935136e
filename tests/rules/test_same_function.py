"""The same function, written in several ways, has the same relevance in every pass."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    TransformerAttribution,
)
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.propagate import conserved
from captum_transformer.rules.relevance import TABLE
from captum_transformer.trace import traced_forward
from tests.rules.by_hand import doubles, weigh

Function = Callable[[Tensor], Tensor]
X = doubles(2, 4, 6)
BEFORE, W, V = doubles(6, 6, seed=1), doubles(6, 5, seed=2), doubles(6, 6, seed=3)
KEEP = torch.tensor([True, True, False, True, True, False])
BIAS, GAIN, EPS = doubles(5, seed=4), doubles(6, seed=5), 1e-5
POSITIONS = doubles(4, 5, seed=6)
EXPERTS, OWN = doubles(4, 6, 5, seed=7), doubles(4, 5, seed=8)


def rms(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


def exponentials(x: Tensor) -> Tensor:
    powers = x.exp()
    return powers / powers.sum(-1, keepdim=True)


def logarithms(x: Tensor) -> Tensor:
    return x - x.exp().sum(-1, keepdim=True).log()


def once_more(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True)


def largest(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(-1, x.topk(3)[1], 1.0)


def added_one_by_one(x: Tensor) -> Tensor:
    first, *others = x.unbind(-1)
    return x / sum(others, first + 1e-12).unsqueeze(-1)


def turned(x: Tensor) -> Tensor:
    """Pairs of features as complex numbers, turned as by a rotary embedding."""
    pairs = torch.view_as_complex(x.unflatten(-1, (3, 2)))
    return pairs * torch.polar(torch.ones(4, 1), torch.arange(4.0)[:, None]).to(pairs)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def by_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + EPS)


layer_norm = nn.LayerNorm(6).double()
nn.init.normal_(layer_norm.weight), nn.init.normal_(layer_norm.bias)

GROUPS: dict[str, dict[str, Function]] = {
    "rms norm": {
        "fused": lambda x: F.rms_norm(x, (6,), GAIN, EPS),
        "product": lambda x: x * rms(x) * GAIN,
        "einsum": lambda x: torch.einsum("bnd,bn,d->bnd", x, rms(x)[..., 0], GAIN),
        "einsum of two": lambda x: torch.einsum("bnd,bnl->bnd", x, rms(x)) * GAIN,
        "addcmul": lambda x: torch.addcmul(torch.zeros_like(GAIN), x, rms(x)) * GAIN,
        "diagonal": lambda x: torch.diag_embed(rms(x)[..., 0]) @ x * GAIN,
        "quotient": lambda x: x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * GAIN,
        "norm": lambda x: x / (x.norm(dim=-1, keepdim=True).square() / 6 + EPS).sqrt() * GAIN,
        "addcdiv": lambda x: (
            torch.addcdiv(torch.zeros_like(x), x, (x.square().mean(-1, keepdim=True) + EPS).sqrt())
            * GAIN
        ),
        "power": lambda x: x * (x.pow(2).mean(-1, keepdim=True) + EPS) ** -0.5 * GAIN,
        "scaled gain": lambda x: x * (rms(x) * GAIN),
    },
    "length": {
        "normalize": lambda x: F.normalize(x, dim=-1),
        "quotient": lambda x: x / x.norm(dim=-1, keepdim=True),
        "linalg": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
        "linalg.norm": lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True),
        "root": lambda x: x / x.square().sum(-1, keepdim=True).sqrt(),
        "root of a product": lambda x: x / (x * x).sum(-1, keepdim=True).sqrt(),
        "reciprocal": lambda x: x * x.norm(dim=-1, keepdim=True).reciprocal(),
        "expanded": lambda x: x.div(x.norm(dim=-1, keepdim=True).expand_as(x)),
    },
    "layer norm": {
        "module": layer_norm,
        "functional": lambda x: F.layer_norm(x, (6,), layer_norm.weight, layer_norm.bias),
        "by hand": lambda x: by_hand(x) * layer_norm.weight + layer_norm.bias,
        "var": lambda x: (
            (x - x.mean(-1, keepdim=True))
            / torch.sqrt(x.var(-1, keepdim=True, correction=0) + EPS)
            * layer_norm.weight
            + layer_norm.bias
        ),
        "var_mean": lambda x: by_var_mean(x) * layer_norm.weight + layer_norm.bias,
        "addcmul": lambda x: torch.addcmul(layer_norm.bias, by_hand(x), layer_norm.weight),
    },
    "linear layer": {
        "linear": lambda x: F.linear(x, W.T, BIAS),
        "matmul": lambda x: x @ W + BIAS,
        "bias first": lambda x: BIAS + x @ W,
        "in place": lambda x: (x @ W).add_(BIAS),
        "subtracted": lambda x: x @ W - (-BIAS),
        "two halves": lambda x: x @ W + BIAS / 2 + BIAS / 2,
        "addmm": lambda x: torch.addmm(BIAS, x.flatten(0, 1), W).unflatten(0, (2, 4)),
        "baddbmm": lambda x: torch.baddbmm(BIAS, x, W.expand(2, -1, -1)),
        "einsum": lambda x: torch.einsum("bnd,de->bne", x, W) + BIAS,
        "einsum, expanded": lambda x: torch.einsum("bnd,de->bne", x, W) + BIAS.expand(2, 4, 5),
        "tensordot": lambda x: torch.tensordot(x, W, 1) + BIAS,
        "convolution": lambda x: F.conv1d(x.mT, W.T[..., None], BIAS).mT,
        "convolution and bias": lambda x: (F.conv1d(x.mT, W.T[..., None]) + BIAS[:, None]).mT,
        "bias elsewhere": lambda x: ((x @ W).mT + BIAS[:, None]).mT,
        "scaled": lambda x: (x @ (2 * W)) * 0.5 + BIAS,
        "negative alpha": lambda x: torch.addmm(BIAS, x.flatten(0, 1), -W, alpha=-1).unflatten(
            0, (2, 4)
        ),
        "scaled before": lambda x: F.linear(x * 2, W.T / 2, BIAS),
        "beside an empty product": lambda x: x @ W + BIAS + x[..., :0] @ W[:0],
        "bias of heads": lambda x: ((x @ W).view(2, 4, 5, 1) + BIAS[:, None]).flatten(2),
    },
    "vector": {
        "matmul": lambda x: x @ W[:, 0],
        "row by row": lambda x: torch.stack([F.linear(y, W[:, 0]) for y in x.flatten(0, 1)]).view(
            2, 4
        ),
    },
    "experts": {
        "one by one": lambda x: torch.stack(
            [F.linear(x[:, i], EXPERTS[i].T, OWN[i]) for i in range(4)], 1
        ),
        "weights for each row": lambda x: torch.einsum("bnd,nde->bne", x, EXPERTS) + OWN,
        "baddbmm": lambda x: torch.baddbmm(OWN[:, None], x.mT.permute(2, 0, 1), EXPERTS).mT.permute(
            2, 0, 1
        ),
        "matrices": lambda x: (x.unsqueeze(-2) @ EXPERTS).squeeze(-2) + OWN,
        "scaled": lambda x: torch.einsum("nde,bnd->bne", EXPERTS, x * 2).div(2) + OWN,
    },
    "positions": {
        "linear": lambda x: F.linear(x, W.T) + POSITIONS,
        "first": lambda x: POSITIONS + x @ W,
        "baddbmm": lambda x: torch.baddbmm(POSITIONS, x, W.expand(2, -1, -1)),
        "subtracted": lambda x: x @ W - (-POSITIONS),
        "repeated": lambda x: x @ W + POSITIONS.repeat(2, 1, 1),
        "expanded weights": lambda x: x @ W.expand(2, -1, -1) + POSITIONS,
    },
    "constant factor": {
        "product": lambda x: (x @ V) * 0.5,
        "quotient": lambda x: (x @ V) / 2,
        "mul": lambda x: (x @ V).mul(0.5),
        "div": lambda x: torch.div(x @ V, 2),
        "tensor": lambda x: (x @ V) * torch.tensor(0.5, dtype=torch.float64),
        "weights": lambda x: x @ (V / 2),
        "einsum": lambda x: torch.einsum("bnd,->bnd", x @ V, torch.tensor(0.5, dtype=x.dtype)),
        "mean of two": lambda x: (x @ V).unsqueeze(-1).expand(-1, -1, -1, 2).mean(-1) / 2,
        "multiply": lambda x: torch.multiply(0.5, x @ V),
    },
    "difference": {
        "difference": lambda x: x @ V - x,
        "negative": lambda x: x @ V + (-x),
        "neg": lambda x: x @ V + x.neg(),
        "factor": lambda x: x @ V + x * -1,
        "alpha": lambda x: torch.add(x @ V, x, alpha=-1),
        "rsub": lambda x: torch.rsub(x, x @ V),
        "turned around": lambda x: -(x - x @ V),
        "lerp": lambda x: torch.addcmul(x @ V, x, -torch.ones(6, dtype=x.dtype)),
    },
    "twice": {
        "sum": lambda x: x + x,
        "product": lambda x: 2 * x,
        "alpha": lambda x: torch.add(x, x, alpha=1),
        "in place": lambda x: (x * 1.0).add_(x),
        "stack": lambda x: torch.stack([x, x]).sum(0),
        "addcmul": lambda x: torch.addcmul(x, x, torch.ones(6, dtype=x.dtype)),
    },
    "sum of two": {
        "sum": lambda x: x @ V + x,
        "stack": lambda x: torch.stack([x @ V, x]).sum(0),
        "stack behind": lambda x: torch.stack([x, x @ V], -1).sum(-1),
        "mean": lambda x: torch.stack([x @ V, x]).mean(0) * 2,
        "python": lambda x: sum([x @ V, x]),
        "baddbmm": lambda x: torch.baddbmm(x, x, V.expand(2, -1, -1)),
    },
    "mean": {
        "mean": lambda x: x.mean(1),
        "sum": lambda x: x.sum(1) / 4,
        "factor": lambda x: x.sum(1) * 0.25,
        "einsum": lambda x: torch.einsum("bnd->bd", x) / 4,
        "pool": lambda x: F.adaptive_avg_pool1d(x.mT, 1)[..., 0],
        "average pool": lambda x: F.avg_pool1d(x.mT, 4)[..., 0],
        "masked": lambda x: (x * torch.ones(4, 1, dtype=x.dtype)).sum(1) / torch.ones(4).sum(),
        "cumsum": lambda x: x.cumsum(1)[:, -1] / 4,
    },
    "turned": {
        "view": lambda x: torch.view_as_real(turned(x)).flatten(2),
        "parts": lambda x: torch.stack([turned(x).real, turned(x).imag], -1).flatten(2),
    },
    "gelu": {
        "fused": F.gelu,
        "formula": gelu,
        "cdf": lambda x: x * torch.special.ndtr(x),
        "gate first": lambda x: torch.special.ndtr(x) * x,
    },
    "silu": {
        "fused": F.silu,
        "gate": lambda x: x * x.sigmoid(),
        "gate first": lambda x: x.sigmoid() * x,
        "quotient": lambda x: x / (1 + torch.exp(-x)),
        "einsum": lambda x: torch.einsum("bnd,bnd->bnd", x.sigmoid(), x),
        "addcmul": lambda x: torch.addcmul(torch.zeros_like(GAIN), x.sigmoid(), x),
    },
    "relu": {
        "fused": F.relu,
        "clamp": lambda x: x.clamp(min=0),
        "where": lambda x: torch.where(x > 0, x, 0.0),
        "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
        "mask": lambda x: x * (x > 0),
    },
    "softmax": {
        "fused": lambda x: x.softmax(-1),
        "by hand": exponentials,
        "shifted": lambda x: exponentials(x - x.amax(-1, keepdim=True)),
        "shifted by a constant": lambda x: exponentials(x - x.amax(-1, keepdim=True).detach()),
        "logarithm": lambda x: x.log_softmax(-1).exp(),
        "logsumexp": lambda x: (x - x.logsumexp(-1, keepdim=True)).exp(),
    },
    "log softmax": {
        "fused": lambda x: x.log_softmax(-1),
        "logarithm": lambda x: x.softmax(-1).log(),
        "stabilised": lambda x: (x.softmax(-1) + 1e-15).log(),
        "clamped": lambda x: x.softmax(-1).clamp(min=1e-15).log(),
        "logsumexp": lambda x: x - x.logsumexp(-1, keepdim=True),
        "by hand": logarithms,
        "shifted": lambda x: logarithms(x - x.amax(-1, keepdim=True)),
    },
    "masked softmax": {
        "fused": lambda x: x.masked_fill(~KEEP, -torch.inf).softmax(-1),
        "renormalised": lambda x: once_more(x.softmax(-1) * KEEP),
        "filled": lambda x: once_more(x.softmax(-1).masked_fill(~KEEP, 0)),
        "normalize": lambda x: F.normalize(x.softmax(-1) * KEEP, p=1, dim=-1),
        "reciprocal": lambda x: (
            x.softmax(-1) * KEEP * (x.softmax(-1) * KEEP).sum(-1, keepdim=True).reciprocal()
        ),
    },
    "softmax of the largest": {
        "fused": lambda x: x.topk(3)[0].softmax(-1),
        "renormalised": lambda x: once_more(x.softmax(-1).topk(3)[0]),
        "sorted": lambda x: once_more(x.softmax(-1).sort(-1, descending=True)[0][..., :3]),
        "gathered": lambda x: once_more(x.softmax(-1).gather(-1, x.topk(3)[1])),
        "masked": lambda x: once_more(x.softmax(-1) * largest(x)).gather(-1, x.topk(3)[1]),
        "normalize": lambda x: F.normalize(x.softmax(-1).topk(3)[0], p=1, dim=-1),
        "one by one": lambda x: added_one_by_one(x.softmax(-1).topk(3)[0]),
    },
    "softmax of queries, and a norm over keys": {
        "stabilised": lambda x: once_more(x.softmax(1) + 1e-12),
        "exact": lambda x: once_more(x.softmax(1)),
        "normalize": lambda x: F.normalize(x.softmax(1), p=1, dim=-1),
        "one by one": lambda x: added_one_by_one(x.softmax(1)),
    },
    "weighted by a softmax": {
        "softmax": lambda x: x.softmax(-1) @ V,
        "sums": lambda x: (x.exp() @ V) / x.exp().sum(-1, keepdim=True),
        "reciprocal": lambda x: (x.exp() @ V) * (1 / x.exp().sum(-1, keepdim=True)),
    },
    "gated": {
        "signal first": lambda x: (x @ V) * F.silu(x),
        "gate first": lambda x: F.silu(x) * (x @ V),
        "einsum": lambda x: torch.einsum("bnd,bnd->bnd", x @ V, F.silu(x)),
        "addcmul": lambda x: torch.addcmul(torch.zeros_like(GAIN), x @ V, F.silu(x)),
        "chunks": lambda x: torch.cat([x @ V, x], -1)[..., :6] * F.silu(x),
        "activation by hand": lambda x: (x @ V) * (x * x.sigmoid()),
        "factor by factor": lambda x: (x @ V) * x * x.sigmoid(),
    },
    "sigmoid gate": {
        "glu": lambda x: F.glu(torch.cat([x @ V, x], -1)),
        "signal first": lambda x: (x @ V) * x.sigmoid(),
        "gate first": lambda x: x.sigmoid() * (x @ V),
        "quotient": lambda x: (x @ V) / (1 + torch.exp(-x)),
        "reciprocal": lambda x: (x @ V) * (1 / (1 + torch.exp(-x))),
    },
}


def lrp(function: Function) -> Tensor:
    """From random relevance on, where the output is not zero, down to the input."""
    with traced_forward(function, Arguments(X), keep=TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        seeds = {value: doubles(*value.shape, seed=9) * (forward.output != 0)}
        arrived, _ = conserved(forward.tape, seeds, TABLE, forward.values)
        return arrived[forward.values[0]]


def conservative(function: Function) -> Tensor:
    method = ConservativeLRP(lambda x: weigh(function(x)).flatten(1).sum(1), attention_rule=False)
    return method.attribute(X)


def attn_lrp(function: Function) -> Tensor:
    return AttnLRP(lambda x: weigh(function(attended(x))).flatten(1).sum(1)).attribute(X)


def attn_lrp_gamma(function: Function) -> Tensor:
    method = AttnLRP(
        lambda x: weigh(function(attended(x))).flatten(1).sum(1), gamma=0.5, conv_gamma=0.5
    )
    return method.attribute(X)


def gim(function: Function) -> Tensor:
    return GIM(lambda x: weigh(function(attended(x))).flatten(1).sum(1)).attribute(X)


def partial_lrp(function: Function) -> Tensor:
    """A map of the attention before the function, so that this is all that tells."""
    method = PartialLRP(lambda x: weigh(function(attended(x))).flatten(1).sum(1))
    (found,) = method.relevance_maps(X).values()
    return found


def attended(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


PASSES: dict[str, Callable[[Function], Tensor]] = {
    "LRP": lrp,
    "ConservativeLRP": conservative,
    "AttnLRP": attn_lrp,
    "AttnLRP, gamma": attn_lrp_gamma,
    "GIM": gim,
    "PartialLRP": partial_lrp,
}
# Rules for single functions are not one for all together, and that is said.
REFUSED = {
    ("AttnLRP", "softmax", "by hand"): "softmax written by hand",
    ("AttnLRP", "softmax", "shifted"): "softmax written by hand",
    ("AttnLRP", "softmax", "shifted by a constant"): "softmax written by hand",
    ("AttnLRP", "sigmoid gate", "quotient"): "activation of another signal",
    ("AttnLRP", "gated", "factor by factor"): "written in several steps",
    ("LRP", "gated", "factor by factor"): "written in several steps",
    ("PartialLRP", "gated", "factor by factor"): "written in several steps",
    ("AttnLRP", "log softmax", "by hand"): "or its logarithm",
    ("AttnLRP", "log softmax", "shifted"): "or its logarithm",
    ("AttnLRP", "masked softmax", "reciprocal"): "softmax written by hand",
    ("AttnLRP", "weighted by a softmax", "sums"): "softmax written by hand",
    ("AttnLRP", "weighted by a softmax", "reciprocal"): "softmax written by hand",
    ("GIM", "sigmoid gate", "quotient"): "activation of another signal",
    ("GIM", "gated", "factor by factor"): "written in several steps",
    ("GIM", "masked softmax", "reciprocal"): "softmax written by hand",
    ("GIM", "weighted by a softmax", "sums"): "softmax written by hand",
    ("GIM", "weighted by a softmax", "reciprocal"): "softmax written by hand",
}
PAIRS = [(group, name) for group, spellings in GROUPS.items() for name in list(spellings)[1:]]


@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize(("group", "name"), PAIRS)
def test_the_same_function_has_the_same_relevance(group: str, name: str, method: str) -> None:
    first, other = next(iter(GROUPS[group].values())), GROUPS[group][name]
    torch.testing.assert_close(other(X), first(X))
    explain = PASSES[method]
    refusal = REFUSED.get((method.removesuffix(", gamma"), group, name))
    if refusal is not None:
        with pytest.raises(UnsupportedOperationError, match=refusal):
            explain(lambda x: other(F.linear(x, BEFORE)))
        return
    found, expected = (explain(lambda x, f=f: f(F.linear(x, BEFORE))) for f in (other, first))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


ORDER = torch.tensor([3, 0, 5, 2, 4, 1])


def written(x: Tensor) -> Tensor:
    buffer = torch.empty_like(x)
    buffer[..., :3] = x[..., :3]
    buffer[..., 3:].copy_(x[..., 3:])
    return buffer


# What exponentials may go through before they are divided by their sum: with a mask, or whole.
MASKED: dict[str, Function] = {
    "product": lambda p: p * KEEP,
    "where": lambda p: torch.where(KEEP, p, 0.0),
    "masked_fill": lambda p: p.masked_fill(~KEEP, 0.0),
    "masked_scatter": lambda p: torch.zeros_like(p).masked_scatter(KEEP, p[..., KEEP]),
}
PASSED: dict[str, Function] = {
    "maximum": lambda p: torch.maximum(p, torch.zeros_like(p)),
    "clamp": lambda p: p.clamp(min=1e-30),
    "nan_to_num": torch.nan_to_num,
    "written": written,
    "index_copy": lambda p: torch.zeros_like(p).index_copy(-1, ORDER, p[..., ORDER]),
    "index_add": lambda p: torch.zeros_like(p).index_add(-1, ORDER, p[..., ORDER]),
    "joined": lambda p: torch.cat([p[..., :2], p[..., 2:]], -1),
    "padded": lambda p: F.pad(p, (1, 1))[..., 1:-1],
}
QUOTIENTS: dict[str, Function] = {
    "sum": lambda p: p / p.sum(-1, keepdim=True) @ V,
    "reciprocal": lambda p: p * p.sum(-1, keepdim=True).reciprocal() @ V,
    "normalize": lambda p: F.normalize(p, p=1, dim=-1) @ V,
    "afterwards": lambda p: (p @ V) / p.sum(-1, keepdim=True),
}


@pytest.mark.parametrize("method", ["LRP", "ConservativeLRP", "AttnLRP", "GIM"])
@pytest.mark.parametrize("way", [*MASKED, *PASSED])
def test_a_softmax_by_hand_is_right_or_refused_whatever_is_done_to_its_exponentials(
    way: str, method: str
) -> None:
    changed, keep = {**MASKED, **PASSED}[way], KEEP if way in MASKED else torch.ones_like(KEEP)

    def fused(x: Tensor) -> Tensor:
        return F.linear(x, BEFORE).masked_fill(~keep, -torch.inf).softmax(-1) @ V

    expected = PASSES[method](fused)
    for quotient in QUOTIENTS.values():

        def by_hand(x: Tensor, quotient: Function = quotient) -> Tensor:
            return quotient(changed(F.linear(x, BEFORE).exp()))

        torch.testing.assert_close(by_hand(X), fused(X))
        try:
            found = PASSES[method](by_hand)
        except UnsupportedOperationError:
            continue
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


UNKNOWN: dict[str, Function] = {
    "dot": lambda x: torch.stack([torch.dot(y, W[:, 0]) for y in x.flatten(0, 1)]).view(2, 4),
    "matmul": lambda x: torch.stack([y @ W[:, 0] for y in x.flatten(0, 1)]).view(2, 4),
    "index_add": lambda x: (x @ W).index_add(2, torch.arange(5), BIAS.expand(2, 4, 5)),
    "scatter_add": lambda x: (x @ W).scatter_add(
        2, torch.arange(5).expand(2, 4, 5), BIAS.expand(2, 4, 5)
    ),
    "index_put": lambda x: (x @ W)[0].index_put(
        (torch.arange(4)[:, None], torch.arange(5)), BIAS.expand(4, 5), accumulate=True
    )[None],
}


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN)
def test_what_may_or_may_not_be_weights_or_a_bias_is_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"not known|unknown"):
        lrp(function)


def test_a_diagonal_within_a_product_is_refused_by_name():
    diagonal = partial(torch.einsum, "bii,bi->bi")
    for explain in (lrp, partial_lrp):
        with pytest.raises(UnsupportedOperationError, match=r"`einsum`.*takes a diagonal"):
            explain(lambda x: diagonal(x @ x.mT, x[..., 0]))


WRITES: dict[str, Function] = {
    "brackets": lambda x: x.__setitem__(..., x + x.square()) or x,
    "a mean": lambda x: x.square().mean(-1, keepdim=True) * x.mul_(2),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_over_what_autograd_has_kept_is_named(write: Function) -> None:
    def model(x: Tensor) -> Tensor:
        return write((attended(x) @ V).square()) @ W[:, 0]

    for method in (GenericAttentionRelevance, TransformerAttribution):
        with pytest.raises(UnsupportedOperationError, match=r"`(setitem|mul)`.*out-of-place"):
            method(model).attribute(X, target=1)


WEIGHTS: dict[str, Function] = {
    "quotient": exponentials,
    "shifted": lambda s: exponentials(s - s.amax(-1, keepdim=True)),
    "shifted by a constant": lambda s: exponentials(s - s.detach().max(-1, keepdim=True)[0]),
    "stabilised": lambda s: s.exp() / (s.exp().sum(-1, keepdim=True) + 1e-12),
    "normalize": lambda s: F.normalize(s.exp(), p=1, dim=-1),
    "reciprocal": lambda s: s.exp() * s.exp().sum(-1, keepdim=True).reciprocal(),
    "logarithm": lambda s: s.log_softmax(-1).exp(),
    "logsumexp": lambda s: (s - s.logsumexp(-1, keepdim=True)).exp(),
}


@pytest.mark.parametrize(
    "method",
    [
        GenericAttentionRelevance,
        TransformerAttribution,
        ConservativeLRP,
        AttentionRollout,
        PartialLRP,
    ],
)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_attention_with_a_softmax_by_hand_is_attention(weights: Function, method: Any) -> None:
    def model(softmax: Function) -> Function:
        def attend(x: Tensor) -> Tensor:
            x = x + POSITIONS[:, :1]
            x = x + softmax((x @ BEFORE) @ (x @ V).mT + POSITIONS[:, :4]) @ x
            return x.mean(1) @ W

        return attend

    found, expected = (
        method(model(softmax)).attribute(X, target=2)
        for softmax in (weights, lambda scores: scores.softmax(-1))
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
