"""Models of two blocks that read their tokens in several ways."""

import torch
from torch import Tensor, nn

WIDTH, HEADS, TOKENS = 8, 2, 6


def maps_of(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention probabilities (with a graph), and the output of attention."""
    q, k, v = block.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return weights, block.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))


class Model(nn.Module):
    """Two blocks; subclasses define how they are wired and which tokens the head reads.

    Attributes:
        row: the share of each token in the score.
        spread: how each key of a map is spread over the tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)
        self.double()

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        for block in self.blocks:
            x, weights = self.block(block, x)
            if maps is not None:
                maps.append(weights)
        return self.read(x)

    def block(self, block, x):
        weights, out = maps_of(block, block.norm(x))
        x = x + out
        return x + block.mlp(block.norm2(x)), weights

    def read(self, x):
        return self.head(x[:, 0])

    row = torch.eye(TOKENS, dtype=torch.float64)[0]
    spread = torch.eye(TOKENS, dtype=torch.float64)


class MeanPooled(Model):
    def read(self, x):
        return self.head(x.mean(1))

    row = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)


class MaskedMean(Model):
    def read(self, x):
        mask = torch.tensor([1.0, 1, 1, 0, 1, 0], dtype=x.dtype)[None, :, None]
        return self.head((x * mask).sum(1) / mask.sum(1))

    row = torch.tensor([1, 1, 1, 0, 1, 0], dtype=torch.float64) / 4


class MaskedFill(MaskedMean):
    def read(self, x):
        out = torch.tensor([False, False, False, True, False, True])
        return self.head(x.masked_fill(out[:, None], 0).sum(1) / 4)


class MaskedTransposed(MaskedMean):
    def read(self, x):
        mask = torch.tensor([1.0, 1, 1, 0, 1, 0], dtype=x.dtype)[:, None]
        return self.head((x * mask).transpose(1, 2).contiguous().mean(-1) * (6 / 4))


class MaskedWhere(MaskedMean):
    def read(self, x):
        mask = torch.tensor([True, True, True, False, True, False])[:, None]
        return self.head(torch.where(mask, x, torch.zeros_like(x)).sum(1))


class MaskedEinsum(MaskedMean):
    def read(self, x):
        mask = torch.tensor([[1.0, 1, 1, 0, 1, 0]], dtype=x.dtype).expand(len(x), -1)
        return self.head(torch.einsum("bnd,bn->bd", x, mask))


class MaskedProduct(MaskedMean):
    def read(self, x):
        mask = torch.tensor([[1.0, 1, 1, 0, 1, 0]], dtype=x.dtype)
        return self.head((mask @ x)[:, 0])


class TwoTokens(Model):
    def read(self, x):
        return (self.head(x[:, 0]) + self.head(x[:, 1])) / 2

    row = torch.tensor([0.5, 0.5, 0, 0, 0, 0], dtype=torch.float64)


class LastToken(Model):
    def read(self, x):
        return self.head(x[torch.arange(len(x)), torch.full((len(x),), TOKENS - 1)])

    row = torch.eye(TOKENS, dtype=torch.float64)[-1]


class TwoClassTokens(Model):
    """As in a distilled DeiT: two heads, each with a token of its own."""

    def read(self, x):
        return (self.head(x[:, 0]) + self.head(x[:, 1].flip(-1))) / 2

    row = torch.tensor([0.5, 0.5, 0, 0, 0, 0], dtype=torch.float64)
