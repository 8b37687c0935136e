"""Softmaxes, norms and activations, each written in several ways."""

import functools
import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rules.test_same_function import Function, V

EPS, ROOT, LOG2E, CUBIC = 1e-5, math.sqrt(2), math.log2(math.e), math.sqrt(2 / math.pi)
ONES = torch.ones(6, 1, dtype=torch.float64)


def total(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def top(x: Tensor) -> Tensor:
    return x.amax(-1, keepdim=True)


def once(powers: Tensor) -> Tensor:
    return powers / total(powers)


def log_sum_exp(x: Tensor) -> Tensor:
    return top(x) + total((x - top(x)).exp()).log()


def shifted_twice(x: Tensor, m: Tensor) -> Tensor:
    return x - m - total((x - m).exp()).log()


def blockwise(x: Tensor, values: Tensor | None = None) -> Tensor:
    """Online, with a running maximum."""
    largest = torch.full_like(x[..., :1], -math.inf)
    below, above = torch.zeros_like(largest), []
    for start in range(0, x.shape[-1], 2):
        block = x[..., start : start + 2]
        new = torch.maximum(largest, top(block))
        scale, powers, largest = (largest - new).exp(), (block - new).exp(), new
        below = below * scale + total(powers)
        weighted = powers if values is None else powers @ values[start : start + 2]
        above = [part * scale for part in above] + [weighted]
    return (torch.cat(above, -1) if values is None else sum(above)) / below


def erf(x: Tensor) -> Tensor:
    return torch.erf(x / ROOT)


def cubic(x: Tensor) -> Tensor:
    return torch.tanh(CUBIC * (x + 0.044715 * x.pow(3)))


def inverse(x: Tensor) -> Tensor:
    return (x.var(-1, keepdim=True, correction=0) + EPS).rsqrt()


# The first of each group is the plain form.
GROUPS: dict[str, dict[str, Function]] = {
    "softmax": {
        "fused": lambda x: x.softmax(-1),
        "of the negative": lambda x: F.softmin(-x, -1),
        "exp2": lambda x: once(torch.exp2(x * LOG2E)),
        "exp2, shifted": lambda x: once(torch.exp2((x - top(x)) * LOG2E)),
        "pow": lambda x: once(torch.pow(math.e, x)),
        "operator": lambda x: once(2 ** (x * LOG2E)),
        "by a product": lambda x: x.exp() / (x.exp() @ ONES),
        "by einsum": lambda x: x.exp() / torch.einsum("bnd->bn", x.exp())[..., None],
        "by a mean": lambda x: x.exp() / (mean(x.exp()) * 6),
        "cumulative": lambda x: x.exp() / x.exp().cumsum(-1)[..., -1:],
        "python": lambda x: x.exp() / sum(x.exp().unbind(-1)).unsqueeze(-1),
        "one maximum": lambda x: once((x - x.max()).exp()),
        "maximum twice": lambda x: (x - top(x)).exp() / total((x - top(x)).exp()),
        "log-sum-exp": lambda x: (x - log_sum_exp(x)).exp(),
        "shifted twice": lambda x: shifted_twice(x, top(x)).exp(),
        "squared": lambda x: once((x / 2).exp().square()),
        "step by step": lambda x: (
            x - functools.reduce(torch.logaddexp, x.unbind(-1)).unsqueeze(-1)
        ).exp(),
        "in blocks": blockwise,
    },
    "log softmax": {
        "fused": lambda x: x.log_softmax(-1),
        "log-sum-exp": lambda x: x - log_sum_exp(x),
        "shifted twice": lambda x: shifted_twice(x, top(x)),
        "shifted twice by a constant": lambda x: shifted_twice(x, top(x).detach()),
        "shifted before": lambda x: (z := x - top(x)) - z.logsumexp(-1, keepdim=True),
        "of a quotient": lambda x: once(x.exp()).log(),
        "log2": lambda x: x.softmax(-1).log2() / LOG2E,
        "exp2": lambda x: x - total(torch.exp2(x * LOG2E)).log2() / LOG2E,
        "added": lambda x: x + -x.logsumexp(-1, keepdim=True),
        "turned around": lambda x: -(x.logsumexp(-1, keepdim=True) - x),
        "by a product": lambda x: x - (x.exp() @ ONES).log(),
        "reciprocal": lambda x: x + (1 / total(x.exp())).log(),
    },
    "log-sum-exp": {
        "fused": lambda x: x.logsumexp(-1),
        "by hand": lambda x: x.exp().sum(-1).log(),
        "shifted": lambda x: log_sum_exp(x)[..., 0],
        "by a product": lambda x: (x.exp() @ ONES).log()[..., 0],
    },
    "weighted by a softmax": {
        "fused": lambda x: x.softmax(-1) @ V,
        "by a product": lambda x: (x.exp() @ V) / (x.exp() @ ONES),
        "joined": lambda x: operator.truediv(
            *(x.exp() @ torch.cat([V, ONES], 1)).split([6, 1], -1)
        ),
        "in blocks": lambda x: blockwise(x, V),
    },
    "sigmoid": {
        "fused": torch.sigmoid,
        "tanh": lambda x: (torch.tanh(x / 2) + 1) / 2,
        "half and half": lambda x: 0.5 * torch.tanh(0.5 * x) + 0.5,
        "one over": lambda x: 1 / (1 + torch.exp(-x)),
        "reciprocal": lambda x: (1 + torch.exp(-x)).reciprocal(),
        "power": lambda x: (1 + torch.exp(-x)) ** -1,
        "exponentials": lambda x: torch.exp(x) / (1 + torch.exp(x)),
        "complement": lambda x: 1 - torch.sigmoid(-x),
        "logarithm": lambda x: F.logsigmoid(x).exp(),
        "two cases": lambda x: torch.where(
            x > 0, 1 / (1 + torch.exp(-x)), torch.exp(x) / (1 + torch.exp(x))
        ),
    },
    "sigmoid gate": {
        "fused": lambda x: (x @ V) * x.sigmoid(),
        "tanh": lambda x: (x @ V) * ((torch.tanh(x / 2) + 1) / 2),
        "scaled afterwards": lambda x: (x @ V) * (torch.tanh(x / 2) + 1) / 2,
        "one over": lambda x: (x @ V) * (1 / (1 + torch.exp(-x))),
        "complement": lambda x: (x @ V) * (1 - torch.sigmoid(-x)),
        "quotient": lambda x: (x @ V) / (1 + torch.exp(-x)),
        "exponentials": lambda x: (x @ V) * torch.exp(x) / (1 + torch.exp(x)),
    },
    "gelu": {
        "fused": F.gelu,
        "half first": lambda x: 0.5 * x * (1 + erf(x)),
        "halved": lambda x: x * (erf(x) + 1) / 2,
        "complement": lambda x: x * (1 - torch.erfc(x / ROOT) / 2),
        "of two terms": lambda x: 0.5 * x + 0.5 * x * erf(x),
        "half of two": lambda x: 0.5 * (x + x * erf(x)),
    },
    "gelu, tanh": {
        "fused": lambda x: F.gelu(x, approximate="tanh"),
        "half first": lambda x: 0.5 * x * (1 + cubic(x)),
        "products": lambda x: 0.5 * x * (1 + torch.tanh(x * CUBIC * (1 + 0.044715 * x * x))),
        "addcmul": lambda x: (
            x * (1 + torch.tanh(CUBIC * torch.addcmul(x, x * x, x, value=0.044715))) / 2
        ),
        "sigmoid": lambda x: x * torch.sigmoid(2 * CUBIC * (x + 0.044715 * x**3)),
        "of two terms": lambda x: 0.5 * x + 0.5 * x * cubic(x),
    },
    "silu": {
        "fused": F.silu,
        "tanh": lambda x: x / 2 * (torch.tanh(x / 2) + 1),
        "exponentials": lambda x: x * torch.exp(x) / (1 + torch.exp(x)),
        "of two terms": lambda x: x / 2 + x / 2 * torch.tanh(x / 2),
        "difference": lambda x: x - x * torch.sigmoid(-x),
        "complement": lambda x: x * (1 - torch.sigmoid(-x)),
    },
    "swiglu": {
        "fused": lambda x: (x @ V) * F.silu(x),
        "einsum of three": lambda x: torch.einsum("bnd,bnd,bnd->bnd", x @ V, x, x.sigmoid()),
        "halved between": lambda x: (x @ V) * x / 2 * (torch.tanh(x / 2) + 1),
        "divided": lambda x: (x @ V) * x / (1 + torch.exp(-x)),
        "gate first": lambda x: (torch.tanh(x / 2) + 1) * x * 0.5 * (x @ V),
    },
    "softplus": {
        "fused": F.softplus,
        "logarithm": lambda x: (1 + x.exp()).log(),
        "log1p": lambda x: x.exp().log1p(),
        "of the complement": lambda x: -(1 - x.sigmoid()).log(),
        "stable": lambda x: x.clamp(min=0) + (-x.abs()).exp().log1p(),
    },
    "logarithm": {
        "fused": lambda x: x.relu().log1p(),
        "one plus": lambda x: (1 + x.relu()).log(),
        "scaled": lambda x: (2 * x.relu() + 2).div(2).log(),
    },
    "tanh": {
        "fused": torch.tanh,
        "sigmoid": lambda x: 2 * torch.sigmoid(2 * x) - 1,
        "one minus": lambda x: 1 - 2 / (1 + torch.exp(2 * x)),
        "hyperbolic": lambda x: x.sinh() / x.cosh(),
    },
    "elu": {
        "fused": F.elu,
        "exponential": lambda x: torch.where(x > 0, x, x.exp() - 1),
        "of two terms": lambda x: x.relu() + (x.clamp(max=0).exp() - 1),
        "less": lambda x: x.relu() - (1 - x.clamp(max=0).exp()),
    },
    "hard sigmoid": {
        "fused": F.hardsigmoid,
        "relu6": lambda x: F.relu6(x + 3) / 6,
        "clamp": lambda x: (x / 6 + 0.5).clamp(0, 1),
    },
    "mish": {
        "fused": F.mish,
        "by hand": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
    },
    "relu of a sum": {
        "fused": lambda x: (x + 0.5).relu(),
        "clamp": lambda x: (x + 0.5).clamp(min=0),
        "clamp_min": lambda x: torch.clamp_min(0.5 + x, 0),
        "of the negative": lambda x: -(-0.5 - x).clamp(max=0),
    },
    "squared relu": {
        "fused": lambda x: x.relu() ** 2,
        "product": lambda x: x.relu() * x.relu(),
    },
    "rms norm": {
        "fused": lambda x: F.rms_norm(x, (6,), None, EPS),
        "rsqrt": lambda x: x * torch.rsqrt(mean(x.pow(2)) + EPS),
        "by a product": lambda x: x * ((x * x) @ ONES / 6 + EPS).rsqrt(),
        "einsum": lambda x: x * (torch.einsum("bnd,bnd->bn", x, x)[..., None] / 6 + EPS).rsqrt(),
        "rows": lambda x: x * ((x[..., None, :] @ x[..., None])[..., 0] / 6 + EPS).rsqrt(),
        "variance": lambda x: (
            x / (x.var(-1, correction=0, keepdim=True) + mean(x) ** 2 + EPS).sqrt()
        ),
        "features first": lambda x: (x.mT * (x.mT.square().mean(1, True) + EPS).rsqrt()).mT,
    },
    "length": {
        "fused": lambda x: F.normalize(x, dim=-1) * math.sqrt(6),
        "quotient": lambda x: x / x.norm(dim=-1, keepdim=True) * math.sqrt(6),
        "divided by less": lambda x: x / (x.norm(dim=-1, keepdim=True) / math.sqrt(6)),
        "clamped": lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) * math.sqrt(6),
        "rms norm": lambda x: F.rms_norm(x, (6,), None, 0.0),
        "scaled reciprocal": lambda x: x * (x.norm(dim=-1, keepdim=True) * 6**-0.5).reciprocal(),
    },
    "layer norm": {
        "fused": lambda x: F.layer_norm(x, (6,), None, None, EPS),
        "rsqrt": lambda x: (x - mean(x)) * inverse(x),
        "of squares": lambda x: (x - mean(x)) * (mean(x * x) - mean(x) ** 2 + EPS).rsqrt(),
        "sum": lambda x: (x - total(x) / 6) * inverse(x),
        "added": lambda x: (x + -mean(x)) * inverse(x),
        "turned around": lambda x: (mean(x) - x) * -inverse(x),
        "rms norm": lambda x: F.rms_norm(x - mean(x), (6,), None, EPS),
        "group norm": lambda x: F.group_norm(x.reshape(8, 6), 1, eps=EPS).view_as(x),
    },
}
