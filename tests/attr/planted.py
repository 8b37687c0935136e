"""Attention models whose weights are written by hand, so that it is known which token decides."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = "cls relay mark_a mark_b evidence_a evidence_b carried noise".split()


class Head(NamedTuple):
    """What an attention head does.

    Attributes:
        asks: which feature a token must have to attend to anything in particular.
        looks_for: which feature of the other tokens it attends to.
        sharpness: how much, as the logit of a token that has one of both features.
        reads: which feature it takes from there.
        writes: where it adds what it has read.
    """

    asks: str
    looks_for: str
    sharpness: float
    reads: str
    writes: str


class HandSetAttention(nn.Module):
    """Attention with heads of one dimension each, without biases."""

    def __init__(self, heads: list[Head]) -> None:
        super().__init__()
        size, count = len(FEATURES), len(heads)
        self.query, self.key, self.value = (nn.Linear(size, count, bias=False) for _ in range(3))
        self.out = nn.Linear(count, size, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for number, head in enumerate(heads):
                self.query.weight[number, FEATURES.index(head.asks)] = head.sharpness
                self.key.weight[number, FEATURES.index(head.looks_for)] = 1
                self.value.weight[number, FEATURES.index(head.reads)] = 1
                self.out.weight[FEATURES.index(head.writes), number] = 1

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).transpose(1, 2)[..., None] for part in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v)[..., 0].transpose(1, 2))


class Planted(nn.Module):
    """Attention layers beside skips; each class's score is one feature of the first token."""

    def __init__(self, layers: list[list[Head]], scores: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(HandSetAttention(heads) for heads in layers)
        self.scores = nn.Linear(len(FEATURES), len(scores), bias=False)
        with torch.no_grad():
            self.scores.weight.zero_()
            for number, feature in enumerate(scores):
                self.scores.weight[number, FEATURES.index(feature)] = 1
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.scores(x[:, 0])


def tokens(*features: dict[str, float]) -> Tensor:
    """One sample, ``(1, tokens, features)``, with some noise in each that nothing reads."""
    x = torch.zeros(1, len(features), len(FEATURES), dtype=torch.float64)
    for place, token in enumerate(features):
        for name, value in {"noise": (-1.0) ** place, **token}.items():
            x[0, place, FEATURES.index(name)] = value
    return x
