"""A model whose linear layers have eight-bit weights and are computed by a given function."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LibraGrad,
    PartialLRP,
    TransformerAttribution,
)

METHODS = {
    "ConservativeLRP": ConservativeLRP,
    "positive gamma": lambda model: ConservativeLRP(model, gamma=0.2),
    "AttnLRP": AttnLRP,
    "gamma": lambda model: AttnLRP(model, gamma=0.2),
    "GIM": GIM,
    "LibraGrad": LibraGrad,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "TransformerAttribution": TransformerAttribution,
    "full": lambda model: TransformerAttribution(model, propagate_to_input=True),
    "PartialLRP": PartialLRP,
    "AttentionRollout": AttentionRollout,
}
every_method = pytest.mark.parametrize("method", METHODS)


NAMES = ("queries", "keys", "values", "project", "up", "down", "head")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries, self.keys, self.values, self.project = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))

    def forward(self, x):
        y = self.norms[0](x)
        heads = (
            part(y).unflatten(-1, (2, 4)).transpose(1, 2)
            for part in (self.queries, self.keys, self.values)
        )
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.project(attended)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.double().eval()

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


class Packed(nn.Module):
    """A linear layer with eight-bit weights, computed by a given function."""

    def __init__(self, layer, run):
        super().__init__()
        scale = layer.weight.detach().abs().amax(1) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (layer.weight / scale[:, None]).round().to(torch.int8).t())
        self.bias, self.run = layer.bias, run

    def forward(self, x):
        return self.run(x, self.packed, self.scale, self.bias)


def packed(run):
    """A model whose layers are computed by a function, and one with the same weights."""
    model = Model()
    plain = copy.deepcopy(model)
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        for name in NAMES:
            if isinstance(getattr(one, name, None), nn.Linear):
                layer = Packed(getattr(one, name), run)
                numbers = layer.packed.t() * layer.scale[:, None]
                getattr(other, name).weight.data = numbers.to(torch.float64)
                setattr(one, name, layer)
    return model, plain


def tokens():
    """Two samples of five tokens, the same at each call."""
    return torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def same_maps(method, model, plain, x, **tolerances):
    torch.testing.assert_close(model(x), plain(x), **tolerances)
    found, expected = (METHODS[method](m).attribute(x, target=1) for m in (model, plain))
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found, expected, **tolerances)


def multiplied(x, packed, scale, bias):
    result = (x @ packed.to(x.dtype)) * scale
    return result if bias is None else result + bias


def looked_up(function):
    """A function that looks up `apply` at each call, as models do."""

    def run(*args):
        return function.apply(*args)

    return run


def weight(_, packed, scale, *__):
    return packed.t() * scale[:, None]
