import pytest
import torch
from torch import nn

from lightning_callbacks.layer_relevance import layer_relevance
from lightning_callbacks.samples import Samples


def model():
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False)
    return nn.Sequential(*layers).double()


def test_what_a_linear_rest_adds_up_to_the_score():
    network, x = model(), torch.randn(2, 4, dtype=torch.float64)
    pairs = [(0, 2), (1, 1), (1, 0)]
    values = layer_relevance(network, ["1", "2"], Samples((x,), None), pairs)
    scores = network(x).detach()
    for layer, width in (("1", 6), ("2", 5)):
        sums = values[layer].reshape(3, width).sum(1)
        assert sums.tolist() == pytest.approx([float(scores[pair]) for pair in pairs], rel=1e-5)
    assert not x.requires_grad
    assert not any(part._forward_hooks for part in network.modules())


def test_frozen_layers_have_relevance_too():
    network = model().requires_grad_(False)
    samples = Samples((torch.randn(1, 4, dtype=torch.float64),), None)
    assert layer_relevance(network, ["0"], samples, [(0, 1)])["0"].abs().sum() > 0


def test_layers_that_cannot_be_seen_are_named():
    samples = Samples((torch.randn(1, 4, dtype=torch.float64),), None)
    with pytest.raises(ValueError, match=r"no submodules named \['9'\]"):
        layer_relevance(model(), ["0", "9"], samples, [(0, 1)])

    class Lazy(nn.Sequential):
        def forward(self, x):
            return self[3](self[2](x.tanh()))

    network = Lazy(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5), nn.Linear(5, 3)).double()
    with pytest.raises(ValueError, match=r"\['0'\] have returned no tensor"):
        layer_relevance(network, ["0"], samples, [(0, 1)])
