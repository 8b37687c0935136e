"""A model whose activation and linear layer are given functions, and methods that explain it."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)

METHODS = {
    "AttnLRP": AttnLRP,
    "ConservativeLRP": ConservativeLRP,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "TransformerAttribution": TransformerAttribution,
    "full LRP": lambda model: TransformerAttribution(model, propagate_to_input=True),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Model(nn.Module):
    def __init__(self, activation, linear=nn.functional.linear):
        super().__init__()
        torch.manual_seed(0)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3, bias=False)
        self.activation, self.linear = activation, linear
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x, x, x)[0]
        return self.linear(self.activation(x)[:, 0], self.head.weight)


def tokens() -> Tensor:
    return torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
