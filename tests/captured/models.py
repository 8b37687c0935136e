"""Small models for captured calls, and what is compared."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from captum_transformer import Contrast
from captum_transformer.errors import CaptureMismatchError

CLASSES = 5


class Block(nn.Module):
    """Attention and an MLP, with a scale that is a number of Python's."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale, self.options = heads, 1.0, {"shift": 0.5}
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )
        self.register_buffer("bias", torch.zeros(width))
        self.offset = torch.zeros(width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.scale * self.out(attended) + self.bias + self.offset * self.options["shift"]
        return x + self.mlp(x)


class Classifier(nn.Module):
    """Tokens of values, blocks, a mean, and a head."""

    def __init__(self, block: type[nn.Module] = Block, blocks: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def classifier(block: type[nn.Module] = Block, seed: int = 0, blocks: int = 1) -> Any:
    """A model with one block, which is enough for what each call does, or with several."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(block, blocks).eval()


def values(seed: int = 0, samples: int = 3) -> Tensor:
    return torch.randn(samples, 6, 8, generator=torch.Generator().manual_seed(seed))


def for_each(target: Any, samples: int = 3) -> Any:
    """The target with one index for each sample."""
    if isinstance(target, Contrast):
        return Contrast(*(for_each(t, samples) for t in (target.target, target.rather_than)))
    if isinstance(target, Tensor) and target.numel() == 1:
        target = int(target)
    return [target] * samples if isinstance(target, (int, tuple)) else target


def assert_same(found: Any, expected: Any) -> None:
    """To the last bit."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert one.stride() == other.stride()
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)


def assert_never_stale(method: Any, captured: Any, x: Tensor, target: int) -> bool:
    """The captured call is refused, or gives what the method does; whether it is refused."""
    expected = method.attribute(x, for_each(target))
    try:
        found = captured(x, target)
    except CaptureMismatchError:
        return True
    assert_same(found, expected)
    return False
