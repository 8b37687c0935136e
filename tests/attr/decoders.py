"""A tiny decoder whose attention is given as a function, fused or written out."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES, TOKENS, WIDTH, HEADS = 2, 7, 16, 4
FUTURE = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)


def split(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)


class Block(nn.Module):
    """A block of a decoder: grouped attention, a gated MLP and norms."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        key, value = (split(t) for t in self.kv(y).chunk(2, -1))
        x = x + self.attend(split(self.q(y)), key, value).transpose(1, 2).flatten(2)
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    def __init__(self, attend: Callable[..., Tensor], block: type[Block] = Block) -> None:
        super().__init__()
        self.blocks = nn.Sequential(block(attend), block(attend))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


def fused(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True, **options)


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softmax: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1),
) -> Tensor:
    key, value = (t.repeat_interleave(2, 1) for t in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = ~FUTURE
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=scores.dtype).masked_fill(
            ~attn_mask, -torch.inf
        )
    scores = scores if attn_mask is None else scores + attn_mask
    return softmax(scores).nan_to_num(0.0) @ value
