"""Hand-written copies of models, which keep the attention maps and the tokens of each layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.attr.tiny_models import with_random_weights


class Copy(NamedTuple):
    """The attention maps, tokens and head of a hand-written copy of a model.

    Attributes:
        maps: the attention of each layer, ``(samples, heads, queries, keys)``.
        tokens: the output of each layer, ``(samples, tokens, features)``.
        head: computes the scores from such tokens, ``(samples, classes)``.
    """

    maps: list[Tensor]
    tokens: list[Tensor]
    head: Callable[[Tensor], Tensor]


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, closed: Any = None
) -> tuple[Tensor, Tensor]:
    """Attention with its map, of tensors ``(samples, tokens, features)``."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if closed is not None:
        scores = scores.masked_fill(closed, -torch.inf)
    attention = scores.softmax(-1)
    return (attention @ v).transpose(1, 2).flatten(2), attention


def copied_vit(model: Any, x: Tensor) -> Copy:
    tokens = model._pos_embed(model.patch_embed(x))
    maps, streams = [], []
    for block in model.blocks:
        q, k, v = block.attn.qkv(block.norm1(tokens)).chunk(3, -1)
        heads = block.attn.num_heads
        q, k = (
            norm(x.unflatten(-1, (heads, -1))).flatten(2)
            for norm, x in ((block.attn.q_norm, q), (block.attn.k_norm, k))
        )
        attended, attention = attend(q, k, v, heads)
        tokens = tokens + block.ls1(block.attn.proj(attended))
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        maps.append(attention)
        streams.append(tokens)
    return Copy(maps, streams, lambda z: model.forward_head(model.norm(z)))


def copied_bert(model: Any, ids: Tensor, mask: Tensor) -> Copy:
    tokens = model.bert.embeddings(ids)
    closed = mask[:, None, None] == 0
    maps, streams = [], []
    for layer in model.bert.encoder.layer:
        own, out = layer.attention.self, layer.attention.output
        q, k, v = own.query(tokens), own.key(tokens), own.value(tokens)
        attended, attention = attend(q, k, v, own.num_attention_heads, closed)
        tokens = out.LayerNorm(tokens + out.dense(attended))
        grown = layer.output.dense(layer.intermediate(tokens))
        tokens = layer.output.LayerNorm(tokens + grown)
        maps.append(attention)
        streams.append(tokens)
    return Copy(maps, streams, lambda z: model.classifier(model.bert.pooler(z)))


def copied_tower(
    layers: Any, tokens: Tensor, head: Callable[[Tensor], Tensor], closed: Any = None
) -> Copy:
    """A hand-written tower of CLIP; the score is the cosine with the embedding of the other."""
    maps, streams = [], []
    for layer in layers:
        own, read = layer.self_attn, layer.layer_norm1(tokens)
        projected = own.q_proj(read), own.k_proj(read), own.v_proj(read)
        attended, attention = attend(*projected, own.num_heads, closed)
        tokens = tokens + own.out_proj(attended)
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        maps.append(attention)
        streams.append(tokens)
    return Copy(maps, streams, head)


def clip() -> nn.Module:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    layers = {"num_hidden_layers": 3}
    config = transformers.CLIPConfig(
        text_config={**size, **layers, "vocab_size": 30, "eos_token_id": 29, "bos_token_id": 28},
        vision_config={**size, **layers, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    return with_random_weights(transformers.CLIPModel(config))


class Residual(nn.Module):
    """A block as in OpenCLIP, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = nn.MultiheadAttention(16, 2)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        read = self.ln_1(x)
        x = x + self.attn(read, read, read, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClipVision(nn.Module):
    """The image tower of OpenCLIP, which ends in a product with a parameter."""

    def __init__(self, *, several: bool = False, turns: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(1, 16))
        self.positional_embedding = nn.Parameter(torch.zeros(7, 16))
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.ln_pre, self.ln_post = nn.LayerNorm(16), nn.LayerNorm(16)
        self.proj = nn.Parameter(torch.zeros(16, 8))
        self.several, self.turns = several, turns

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([cls, x], 1) + self.positional_embedding)
        x = x.permute(1, 0, 2)
        read = []
        for block in self.blocks:
            x = block(x).flip(0) if self.turns else block(x)
            read.append(x)
        if self.several:
            x = x + read[0]
        pooled = self.ln_post(x.permute(1, 0, 2)[:, 0])
        return F.normalize(pooled @ self.proj, dim=-1)
