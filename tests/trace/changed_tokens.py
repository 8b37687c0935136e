"""A small Transformer that changes its tokens first, for example by a custom Function."""

import torch
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)

METHODS = [
    ConservativeLRP,
    AttnLRP,
    GenericAttentionRelevance,
    lambda model: TransformerAttribution(model, propagate_to_input=True),
]
WIDTH = 8


class Changed(nn.Module):
    """A small Transformer that changes its tokens first."""

    def __init__(self, change=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)
        self.change = change
        self.double().eval()

    def forward(self, x):
        return self.head(self.layer(self.change(self.embed(x)))[:, 0])


class Reverse(torch.autograd.Function):
    """Gradient reversal; subclasses return their input in another way."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class ReverseItself(Reverse):
    @staticmethod
    def forward(ctx, x):
        return x


class ReverseSlice(Reverse):
    @staticmethod
    def forward(ctx, x):
        return x[:]


class ReverseDirty(Reverse):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x


class ReverseWritten(Reverse):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(1)


class ReverseThroughData(Reverse):
    @staticmethod
    def forward(ctx, x):
        x.data.mul_(1)
        return x


class ReverseCopy(Reverse):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


FUNCTIONS = [
    Reverse,
    ReverseItself,
    ReverseSlice,
    ReverseDirty,
    ReverseWritten,
    ReverseThroughData,
    ReverseCopy,
]


def tokens() -> Tensor:
    """Two samples of five tokens, the same at each call."""
    return torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
