"""One attention layer on tokens that something is done to before it."""

import torch
from torch import nn

WIDTH, TOKENS = 8, 6


class Model(nn.Module):
    """One block on tokens that are changed before it."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.change = change
        self.one, self.other = (
            nn.MultiheadAttention(WIDTH, 2, batch_first=True, dtype=torch.float64) for _ in range(2)
        )
        self.learned = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))
        self.head = nn.Linear(WIDTH, 3, dtype=torch.float64)

    def forward(self, x):
        x = self.change(self, x)
        return self.head((x + self.one(x, x, x)[0]).mean(1))
