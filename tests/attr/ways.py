"""How the parts of a model may be written; the first way of each is the plain one."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _swapped(x: Tensor, dims: list[int]) -> Tensor:
    """Permutes by swapping two dimensions at a time."""
    order = list(range(x.ndim))
    for place, dim in enumerate(dims):
        now = order.index(dim)
        if now != place:
            x = x.transpose(place, now)
            order[place], order[now] = order[now], order[place]
    return x


def _softmax_by_hand(x: Tensor, dim: int) -> Tensor:
    powers = (x - x.amax(dim, keepdim=True).detach()).exp()
    return powers / powers.sum(dim, keepdim=True)


def _reciprocal_softmax(x: Tensor, dim: int) -> Tensor:
    powers = x.exp()
    return powers.sum(dim, keepdim=True).reciprocal() * powers


def _norm_by_hand(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


def _norm_by_rsqrt(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
    return torch.addcmul(bias, (x - mean) * torch.rsqrt(var + 1e-5), gain)


def _rms(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def _rotated_halves(x: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    return torch.cat([-other, one], -1)


def _rotary_by_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    (a, b), (c, _), (s, _) = x.chunk(2, -1), cos.chunk(2, -1), sin.chunk(2, -1)
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def _rotary_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1).contiguous())
    turned = pairs * torch.complex(cos.chunk(2, -1)[0], sin.chunk(2, -1)[0])
    return torch.cat(torch.view_as_real(turned).unbind(-1), -1)


WAYS: dict[str, list[Callable[..., Any]]] = {
    "permute": [
        lambda x, dims: x.permute(dims),
        _swapped,
        lambda x, dims: torch.movedim(x, dims, list(range(x.ndim))),
        lambda x, dims: x.permute(dims).contiguous(),
        lambda x, dims: torch.einsum(
            f"{'abcdefgh'[: x.ndim]}->{''.join('abcdefgh'[d] for d in dims)}", x
        ),
    ],
    "split": [
        lambda x, dim, sizes: x.unflatten(dim, sizes),
        lambda x, dim, sizes: x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :]),
        lambda x, dim, sizes: torch.stack(
            [part.unflatten(dim, sizes[1:]) for part in x.chunk(sizes[0], dim)], dim
        ),
    ],
    "merge": [
        lambda x, dim: x.flatten(dim),
        lambda x, dim: x.reshape(*x.shape[:dim], -1),
        lambda x, dim: torch.cat([part.flatten(dim) for part in x.unbind(dim)], -1),
    ],
    "add": [
        lambda x, y: x + y,
        lambda x, y: y + x,
        lambda x, y: torch.add(y, x),
        lambda x, y: x - (-y),
        lambda x, y: x.clone().add_(y),
        lambda x, y: sum([y, x]),
        lambda x, y: 2 * torch.lerp(x, y.expand_as(x), 0.5),
        lambda x, y: torch.addcmul(x, y, torch.ones_like(y)),
    ],
    "shift": [
        lambda x, y: x + y,
        lambda x, y: y + x,
        lambda x, y: x - (-y),
        lambda x, y: torch.add(y.expand_as(x), x),
    ],
    "multiply": [
        lambda x, y: x * y,
        lambda x, y: y * x,
        lambda x, y: torch.addcmul(torch.zeros_like(x), x, y),
        lambda x, y: torch.einsum("...,...->...", y, x),
        lambda x, y: x.clone().mul_(y),
        lambda x, y: x.mul(y.expand_as(x)),
    ],
    "scale": [
        lambda x, number: x * number,
        lambda x, number: x / (1 / number),
        lambda x, number: torch.mul(number, x),
        lambda x, number: x * torch.tensor(number, dtype=x.dtype),
    ],
    "softmax": [
        lambda x, dim: x.softmax(dim),
        torch.softmax,
        lambda x, dim: F.softmax(x, dim, dtype=x.dtype),
        lambda x, dim: x.log_softmax(dim).exp(),
        _softmax_by_hand,
        _reciprocal_softmax,
        lambda x, dim: x.exp() / x.exp().sum(dim, keepdim=True),
        lambda x, dim: (x - x.logsumexp(dim, keepdim=True)).exp(),
        lambda x, dim: F.softmin(-x, dim),
        lambda x, dim: x.transpose(dim, -1).softmax(-1).transpose(dim, -1),
        lambda x, dim: x.movedim(dim, 0).softmax(0).movedim(0, dim),
    ],
    "mask": [
        lambda x, hidden: x.masked_fill(hidden, -math.inf),
        lambda x, hidden: torch.where(hidden, -math.inf, x),
        lambda x, hidden: torch.where(~hidden, x, torch.finfo(x.dtype).min),
        lambda x, hidden: x + torch.zeros(hidden.shape).to(x).masked_fill(hidden, -math.inf),
        lambda x, hidden: x + hidden.to(x) * -1e9,
        lambda x, hidden: x.masked_fill(hidden, -1e9),
        lambda x, hidden: x.clone().masked_fill_(hidden, -math.inf),
    ],
    "sigmoid": [
        torch.sigmoid,
        lambda x: 1 / (1 + torch.exp(-x)),
        lambda x: (1 + (-x).exp()).reciprocal(),
        lambda x: torch.stack([x, torch.zeros_like(x)], -1).softmax(-1)[..., 0],
        lambda x: F.logsigmoid(x).exp(),
    ],
    "gate": [
        lambda x, y: x * y.sigmoid(),
        lambda x, y: y.sigmoid() * x,
        lambda x, y: x / (1 + torch.exp(-y)),
        lambda x, y: torch.addcmul(torch.zeros_like(x), x, y.sigmoid()),
        lambda x, y: torch.einsum("...,...->...", x, y.sigmoid()),
    ],
    "silu": [
        F.silu,
        lambda x: x * x.sigmoid(),
        lambda x: x.sigmoid() * x,
        lambda x: x / (1 + (-x).exp()),
        lambda x: torch.addcmul(torch.zeros_like(x), x, x.sigmoid()),
    ],
    "glu": [
        lambda x: F.glu(x, -1),
        lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1].sigmoid(),
        lambda x: x[..., x.shape[-1] // 2 :].sigmoid() * x[..., : x.shape[-1] // 2],
    ],
    "linear": [
        F.linear,
        lambda x, w, b: x @ w.T + b,
        lambda x, w, b: b + torch.einsum("...i,oi->...o", x, w),
        lambda x, w, b: torch.addmm(b, x.flatten(0, -2), w.T).unflatten(0, x.shape[:-1]),
        lambda x, w, b: (w @ x.mT).mT + b,
        lambda x, w, b: F.conv1d(x.flatten(0, -3).mT, w[..., None], b).mT.unflatten(
            0, x.shape[:-2]
        ),
        lambda x, w, b: torch.tensordot(x, w, ([-1], [1])) + b,
    ],
    "layer_norm": [
        lambda x, gain, bias: F.layer_norm(x, gain.shape, gain, bias),
        lambda x, gain, bias: F.layer_norm(x, gain.shape) * gain + bias,
        _norm_by_hand,
        _norm_by_rsqrt,
    ],
    "rms_norm": [
        lambda x, gain: F.rms_norm(x, gain.shape, gain, 1e-5),
        lambda x, gain: x * _rms(x) * gain,
        lambda x, gain: gain * (x * _rms(x)),
        lambda x, gain: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain,
        lambda x, gain: x * (_rms(x) * gain),
    ],
    "rotary": [
        lambda x, cos, sin: x * cos + _rotated_halves(x) * sin,
        lambda x, cos, sin: _rotated_halves(x) * sin + x * cos,
        lambda x, cos, sin: torch.addcmul(x * cos, _rotated_halves(x), sin),
        _rotary_by_halves,
        _rotary_complex,
    ],
    "mean": [
        lambda x, dim: x.mean(dim),
        lambda x, dim: x.sum(dim) / x.shape[dim],
        lambda x, dim: x.sum(dim) * (1 / x.shape[dim]),
        lambda x, dim: torch.einsum(
            "...i,i->...", x.movedim(dim, -1), x.new_full((x.shape[dim],), 1 / x.shape[dim])
        ),
    ],
    "first": [
        lambda x, dim: x.select(dim, 0),
        lambda x, dim: x.narrow(dim, 0, 1).squeeze(dim),
        lambda x, dim: x.unbind(dim)[0],
        lambda x, dim: x.index_select(dim, torch.tensor([0])).squeeze(dim),
        lambda x, dim: x.split([1, x.shape[dim] - 1], dim)[0].squeeze(dim),
    ],
}


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = (t.expand(*lead, *t.shape[-2:]).reshape(-1, *t.shape[-2:]) for t in (a, b))
    return torch.bmm(left, right).reshape(*lead, a.shape[-2], b.shape[-1])


def _baddbmm(a: Tensor, b: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = (t.expand(*lead, *t.shape[-2:]).reshape(-1, *t.shape[-2:]) for t in (a, b))
    nothing = left.new_zeros(len(left), a.shape[-2], b.shape[-1])
    return torch.baddbmm(nothing, left, right).reshape(*lead, a.shape[-2], b.shape[-1])


WAYS["matmul"] = [
    lambda a, b: a @ b,
    lambda a, b: torch.matmul(b.mT, a.mT).mT,
    _bmm,
    lambda a, b: _bmm(b.mT, a.mT).mT,
    _baddbmm,
    lambda a, b: torch.einsum("...ij,...jk->...ik", a, b),
    lambda a, b: torch.einsum("...jk,...ij->...ik", b, a),
    lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2),
    lambda a, b: (b.mT.unsqueeze(-3) * a.unsqueeze(-2)).sum(-1),
]
WAYS["product"] = [
    lambda x, y: x * y,
    lambda x, y: y * x,
    lambda x, y: torch.einsum("...,...->...", x, y),
]


WAYS["total"] = [
    lambda x, dims: x.sum(dims),
    lambda x, dims: torch.sum(x, dims, keepdim=True).squeeze(dims),
]
WAYS["choose"] = [
    lambda x, kept: torch.where(kept, x, 0.0),
    lambda x, kept: x * kept,
    lambda x, kept: x.masked_fill(~kept, 0.0),
]
