"""Models that run a list of steps."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

WIDTH, HEADS, TOKENS, CLASSES = 8, 2, 6, 3


class Attention(nn.Module):
    """Attention among all tokens, or within windows of some; keeps its maps."""

    def __init__(self, window: int = 0) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.window = window
        self.maps: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        size = self.window or x.shape[1]
        windows = x.unflatten(1, (-1, size)).flatten(0, 1)
        q, k, v = self.qkv(windows).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * 2).softmax(-1)
        self.maps.append(weights)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return self.out(attended).unflatten(0, (len(x), -1)).flatten(1, 2)

    def matrix(self, weights: Tensor, samples: int) -> Tensor:
        """Maps as one for all tokens, averaged over heads."""
        windows = weights.mean(1).unflatten(0, (samples, -1))
        return torch.stack([torch.block_diag(*sample) for sample in windows])


SUMS = {
    "add": torch.add,
    "add from zero": lambda x, y: 0 + x + y,
    "add by subtracting": lambda x, y: torch.rsub(-x, y),
    "add a constant": lambda x, y: (x + torch.ones(WIDTH)) + y,
    "add in chunks": lambda x, y: torch.cat([x[:, :1] + y[:, :1], x[:, 1:] + y[:, 1:]], 1),
    "add by lerp": lambda x, y: 2 * torch.lerp(x, y, 0.5),
}


class Step(NamedTuple):
    """A step of a program.

    Attributes:
        kind: the name of what it computes.
        of: the places of its operands in the program.
    """

    kind: str
    of: tuple[int, ...]


class Program(nn.Module):
    """A model that runs a list of steps, starting from the embedded tokens."""

    def __init__(self, steps: list[Step], learned: int, read: str) -> None:
        super().__init__()
        self.steps, self.read = steps, read
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.learned = nn.Parameter(torch.empty(1, learned, WIDTH)) if learned else None
        self.layers = nn.ModuleList(_layer(step) for step in steps)
        self.double().eval()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.learned is not None:
            x = torch.cat([self.learned.expand(len(x), -1, -1), x], 1)
        values = [x]
        for (kind, of), layer in zip(self.steps, self.layers, strict=True):
            values.append(_run(kind, layer, [values[place] for place in of]))
        last = self.last = values[-1]
        return self.head(last.mean(1) if self.read == "mean" else last[:, 0])


def _layer(step: Step) -> nn.Module:
    layers = {
        "norm": lambda: nn.LayerNorm(WIDTH),
        "project": lambda: nn.Linear(WIDTH, WIDTH),
        "gate": lambda: nn.Linear(WIDTH, WIDTH),
        "mlp": lambda: nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH)
        ),
        "attend": Attention,
        "attend in windows": lambda: Attention(2),
        "join": lambda: nn.Linear(WIDTH * len(step.of), WIDTH),
        "merge": lambda: nn.Linear(2 * WIDTH, WIDTH),
    }
    return layers.get(step.kind, nn.Identity)()


def _run(kind: str, layer: nn.Module, of: list[Tensor]) -> Tensor:
    x = of[0]
    if kind.startswith("add"):
        return SUMS[kind](x, of[1])
    if kind == "fold":
        return torch.cat(of, 1).unflatten(1, (len(of), -1)).sum(1)
    if kind == "sum of a stack":
        return torch.stack(of).sum(0)
    if kind == "gate":
        return x * layer(of[1]).sigmoid()
    if kind == "join":
        return layer(torch.cat(of, -1))
    if kind == "merge":
        return layer(torch.cat([x[:, 0::2], x[:, 1::2]], -1))
    if kind == "repeat":
        return x.repeat_interleave(2, 1)
    if kind == "sum of thirds":
        return x[:, 0::3] + x[:, 1::3] + x[:, 2::3]
    if kind == "sum of halves":
        while x.shape[1] % 2 == 0:
            half = x.shape[1] // 2
            x = x[:, :half] + x[:, half:]
        return x
    return layer(x)
