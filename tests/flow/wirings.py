"""Models of two blocks whose attention, skip connections and branches are wired in several ways."""

import torch
import torch.nn.functional as F

from tests.flow.models import HEADS, TOKENS, WIDTH, Model, maps_of


class Parallel(Model):
    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        return x + out + block.mlp(block.norm2(x)), weights


class ParallelFirst(Model):
    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        return block.mlp(block.norm2(x)) + out + x, weights


class PostNorm(Model):
    def block(self, block, x):
        weights, out = maps_of(block, x)
        x = block.norm(out + x)
        return block.norm2(block.mlp(x) + x), weights


class Gated(Model):
    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        x = x + out * torch.tensor(0.3, dtype=x.dtype)
        up, gate = block.mlp[0](block.norm2(x)).chunk(2, -1)
        return x + F.silu(gate) * up, weights


class InPlace(Model):
    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        x = x.clone()
        x += out
        return block.mlp(block.norm2(x)).add_(x), weights


class ProjectedSkip(Model):
    """As between the stages of Hiera, where the number of features changes."""

    def block(self, block, x):
        normed = block.norm(x)
        weights, out = maps_of(block, normed)
        x = block.out(normed) + out
        return x + block.mlp(block.norm2(x)), weights


class InnerSkip(Model):
    """As in MViTv2, where the queries are added to what they attended to."""

    def block(self, block, x):
        normed = block.norm(x)
        weights, out = maps_of(block, normed)
        x = x + block.out(out + normed)
        return x + block.mlp(block.norm2(x)), weights


class ProjectedInnerSkip(Model):
    def block(self, block, x):
        normed = block.norm(x)
        weights, out = maps_of(block, normed)
        return (out + block.out(normed)).transpose(0, 1) + x.transpose(0, 1), weights

    def forward(self, x, maps=None):
        for block in self.blocks:
            x, weights = self.block(block, x)
            x = x.transpose(0, 1)
            if maps is not None:
                maps.append(weights)
        return self.read(x)


class Sinks(Model):
    """As in GPT-OSS, where part of the attention goes to a learned score and is lost."""

    def block(self, block, x):
        q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        sinks = torch.tensor([0.5, -1.0], dtype=x.dtype)[:, None, None].expand(
            len(x), -1, TOKENS, 1
        )
        scores = torch.cat([q @ k.mT, sinks], -1)
        weights = (scores - scores.amax(-1, keepdim=True)).softmax(-1)[..., :-1]
        x = x + block.out((weights @ v).transpose(1, 2).flatten(2))
        return x + block.mlp(block.norm2(x)), weights


class TalkingHeads(Model):
    """As in CaiT, where heads are mixed before and after the softmax: rows don't sum up to one."""

    def block(self, block, x):
        mix = torch.tensor([[0.8, -0.3], [0.4, 0.9]], dtype=x.dtype)
        q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = F.linear((q @ k.mT).permute(0, 2, 3, 1), mix).permute(0, 3, 1, 2)
        weights = F.linear(scores.softmax(-1).permute(0, 2, 3, 1), mix.T).permute(0, 3, 1, 2)
        x = x + block.out((weights @ v).transpose(1, 2).flatten(2))
        return x + block.mlp(block.norm2(x)), weights


class ReducedKeys(Model):
    """As in PVT, where keys and values are made of pairs of tokens."""

    def block(self, block, x):
        normed = block.norm(x)
        pairs = F.avg_pool1d(normed.mT, 2).mT
        q = block.qkv(normed)[..., :WIDTH].unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = block.qkv(pairs)[..., WIDTH:].unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT).softmax(-1)
        x = x + block.out((weights @ v).transpose(1, 2).flatten(2))
        return x + block.mlp(block.norm2(x)), weights

    # Each key stands for both tokens of its pair, half for each.
    spread = torch.eye(TOKENS // 2, dtype=torch.float64).repeat_interleave(2, -1) / 2


class Rotary(Model):
    """Queries and keys as complex numbers that are turned by their positions."""

    def block(self, block, x):
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in block.qkv(x).chunk(3, -1))
        angles = torch.arange(1, TOKENS + 1, dtype=x.dtype)[:, None]
        turns = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * turns)
            for t in (q, k)
        )
        weights = (q.flatten(-2) @ k.flatten(-2).mT).softmax(-1)
        return x + block.out((weights @ v).transpose(1, 2).flatten(2)), weights


class Windows(Model):
    """Attention within two shifted windows, then the tokens of each pair are merged."""

    def block(self, block, x):
        rolled = x.roll(1, 1).unflatten(1, (2, 3)).flatten(0, 1)
        weights, out = maps_of(block, block.norm(rolled))
        return x + out.unflatten(0, (-1, 2)).flatten(1, 2).roll(-1, 1), weights

    def read(self, x):
        merged = torch.cat([x[:, 0::2], x[:, 1::2]], -1)
        return self.head(merged[..., :WIDTH] + merged[..., WIDTH:]).mean(1)


class LinearAttention(Model):
    def block(self, block, x):
        q, k, v = block.qkv(x).chunk(3, -1)
        return x + block.out(q @ (k.mT @ v)), None


class WeightedTokens(Model):
    def block(self, block, x):
        q, k, v = block.qkv(x).chunk(3, -1)
        return x + block.out((q[..., :1].softmax(-2) * k).cumsum(-2) * v), None


class ChannelAttention(Model):
    """Attention among a token's channels, as in XCiT, without a skip beside it."""

    def block(self, block, x):
        q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 4, 1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1)
        return block.out((weights @ v).permute(0, 3, 1, 2).flatten(2)), weights
