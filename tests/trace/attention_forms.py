"""A block of attention, and subclasses that write its attention differently."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, WIDTH, CLASSES = 2, 8, 3


class Attention(nn.Module):
    """One residual attention block on embeddings; subclasses write the attention differently."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x[:, 0])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Softmaxed(Attention):
    def attend(self, q, k, v):
        return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v


class Einsum(Attention):
    def attend(self, q, k, v):
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
        weights = scores.softmax(dim=-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v.transpose(1, 2)).transpose(1, 2)


class Batched(Attention):
    def attend(self, q, k, v):
        b, h, n, d = q.shape
        q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
        weights = F.softmax(torch.bmm(q, k.mT) * d**-0.5, dim=-1, dtype=torch.float32)
        weights = F.dropout(weights.to(v.dtype), 0.5, training=True)
        return torch.bmm(weights, v).view(b, h, n, d)


class InPlace(Attention):
    def attend(self, q, k, v):
        scores = torch.empty(*q.shape[:-1], k.shape[-2], dtype=q.dtype)
        scores.copy_(q @ k.transpose(-1, -2))
        scores *= q.shape[-1] ** -0.5
        scores.masked_fill_(torch.zeros_like(scores, dtype=torch.bool), -math.inf)
        scores -= scores.detach().amax(-1, keepdim=True)
        return F.dropout(scores.softmax(-1), 0.1, training=True).matmul(v)


class Transposed(Attention):
    def attend(self, q, k, v):
        weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        return (v.mT @ weights.mT).mT


class TransposedEinsum(Attention):
    def attend(self, q, k, v):
        weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        return torch.einsum("bhkd,bhqk->bhqd", v, weights)


class Dotted(Attention):
    def attend(self, q, k, v):
        weights = torch.softmax(torch.einsum("...id, ...jd", q, k) * q.shape[-1] ** -0.5, -1)
        return torch.einsum("...qk,...kd->...qd", [weights, v])


class Grouped(Attention):
    def attend(self, q, k, v):
        # Two query heads read one key and value head each, through `enable_gqa`.
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


WRITTEN = [Softmaxed, Einsum, Batched, InPlace, Transposed, TransposedEinsum, Dotted, Grouped]


def same_weights(kind: type[Attention]) -> tuple[Attention, Attention]:
    """The fused block and one that is written differently, with the same weights."""
    torch.manual_seed(0)
    reference, other = Attention().double(), kind().double()
    other.load_state_dict(reference.state_dict())
    return reference, other


def embeddings() -> Tensor:
    """Three samples of five tokens, the same at each call."""
    return torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attending(change):
    """A model that changes its input before attention."""

    class Changed(Attention):
        def forward(self, x):
            return super().forward(change(x))

    return same_weights(Changed)[1]
