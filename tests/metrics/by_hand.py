"""The protocols in the plainest way: one sample, one step, one place at a time."""

import math

import torch
from torch import nn


class Classifier(nn.Module):
    """Embeds tokens with their positions, mixes them by attention, and reads the first."""

    def __init__(self, classes=3, vocabulary=30, width=8):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(20, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, 0.3, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, ids, mask=None, scale=1.0):
        x = self.embed(ids) if ids.ndim == 2 else ids
        x = x + self.position(torch.arange(x.shape[1], device=x.device))
        padding = None if mask is None else mask == 0
        return self.head(self.layer(x, src_key_padding_mask=padding)[:, 0]) * scale


def classifier(**options):
    torch.manual_seed(0)
    return Classifier(**options).double().eval()


def in_order(relevance, order, keep=None):
    """The places of one sample that may change, as a list, the first to change first."""
    free = [place for place in range(len(relevance)) if keep is None or not keep[place]]
    sign = -1 if order == "positive" else 1
    return sorted(free, key=lambda place: sign * float(relevance[place]))


def up(fraction, count):
    return math.ceil(round(fraction * count, 9))


def down(fraction, count):
    return math.floor(round(fraction * count, 9))
