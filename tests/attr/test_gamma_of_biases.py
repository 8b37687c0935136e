"""LRP-gamma favours a layer's positive bias, so it has to know which constants are biases."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_transformer import ConservativeLRP
from captum_transformer.errors import UnsupportedOperationError

LAYERS = {
    "function": F.linear,
    "no bias": lambda x, w, b: F.linear(x, w),
    "added": lambda x, w, b: F.linear(x, w) + b,
    "in front": lambda x, w, b: b + torch.einsum("btd,ed->bte", x, w),
    "subtracted": lambda x, w, b: x @ w.T - b,
    "scaled": lambda x, w, b: (x @ w.T) * 2.0 + b,
    "added in place": lambda x, w, b: F.linear(x, w).add_(b),
}
KNOWN = ("function", "no bias")


class Attends(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        self.head = nn.Linear(8, 3)
        self.way = LAYERS[way]

    def forward(self, x):
        x = self.layers[4](x)
        q, k, v = (self.way(x, layer.weight, layer.bias) for layer in self.layers[:3])
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + F.linear(attended, self.layers[3].weight)).mean(1))


@pytest.mark.parametrize("way", LAYERS)
def test_a_bias_that_is_added_later_is_refused(way):
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    ConservativeLRP(Attends(way)).attribute(x, 1)
    method = ConservativeLRP(Attends(way), gamma=0.5)
    if way in KNOWN:
        assert method.attribute(x, 1).any()
    else:
        with pytest.raises(UnsupportedOperationError, match=r"F\.linear\(x, weight, bias\)"):
            method.attribute(x, 1)
