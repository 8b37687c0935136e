"""Attention layers side by side, however their outputs and the skip are added up."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttentionRollout, GenericAttentionRelevance

WIDTH, HEADS, TOKENS = 8, 2, 6


class SideBySide(nn.Module):
    """Blocks in which two attention layers read the same tokens."""

    def __init__(self, join) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)
        self.join = join
        self.double()

    def attend(self, index: int, x: Tensor, maps: list[Tensor]) -> Tensor:
        q, k, v = self.qkv[index](x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        maps.append((q @ k.mT).softmax(-1))
        return (maps[-1] @ v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        maps = [] if maps is None else maps
        for block, norm in enumerate(self.norms):
            y = norm(x)
            x = self.join(x, self.attend(2 * block, y, maps), self.attend(2 * block + 1, y, maps))
        return self.head(x[:, 0])


WRITINGS = {
    "skip first": lambda x, a, b: x + a + b,
    "branches first": lambda x, a, b: x + (a + b),
    "skip last": lambda x, a, b: a + b + x,
    "skip inside": lambda x, a, b: a + (x + b),
    "stacked": lambda x, a, b: x + torch.stack([a, b]).sum(0),
    "stacked behind": lambda x, a, b: torch.stack((a, b), -1).sum(dim=-1) + x,
    "in place": lambda x, a, b: x.clone().add_(a).add_(b),
    "halved": lambda x, a, b: x + (a + b) / 2,
    "mean": lambda x, a, b: x + torch.stack([a, b]).mean(0),
}


@pytest.mark.parametrize("writing", WRITINGS)
def test_parallel_layers_count_in_full_beside_one_skip(writing):
    model, x = SideBySide(WRITINGS[writing]), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    maps: list[Tensor] = []
    gradients = torch.autograd.grad(model(x, maps)[:, 2].sum(), maps)
    relevance = rollout = eye = torch.eye(TOKENS, dtype=x.dtype)
    for block in (slice(2), slice(2, 4)):
        both = zip(maps[block], gradients[block], strict=True)
        relevance = relevance + sum((a * g).relu().mean(1) for a, g in both) @ relevance
        attention = eye + sum(a.mean(1) for a in maps[block])
        rollout = attention / attention.sum(-1, keepdim=True) @ rollout
    # Each block's rows of I + A + B sum up to three.
    for method, rows, direct in (
        (GenericAttentionRelevance, relevance, 1),
        (AttentionRollout, rollout, 1 / 9),
    ):
        passed = method(model).attribute_tokens(x, 2)
        torch.testing.assert_close(passed, (rows - direct * eye)[:, 0])
        whole = method(model, with_identity=True).attribute_tokens(x, 2)
        torch.testing.assert_close(whole, rows[:, 0])


class Towers(nn.Module):
    """Two texts, each with layers of its own, and a score that is read from both."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(SideBySide(WRITINGS["skip first"]) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.towers[0](a) + self.towers[1](b)


def test_towers_that_meet_are_no_parallel_layers():
    a, b = torch.randn(2, 2, TOKENS, WIDTH, dtype=torch.float64)
    model = Towers()
    together = AttentionRollout(model).attribute_tokens((a, b), 2)
    for tower, tokens, relevance in zip(model.towers, (a, b), together, strict=True):
        alone = AttentionRollout(tower).attribute_tokens(tokens, 2)
        torch.testing.assert_close(relevance, alone)
