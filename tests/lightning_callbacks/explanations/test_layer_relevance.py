"""The relevance of a layer is the one that it has while the inputs are explained."""

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_transformer import AttnLRP, ConservativeLRP
from captum_transformer.calling.arguments import Arguments
from lightning_callbacks.explanations.layer_relevance import layer_relevance
from lightning_callbacks.samples.batch import Samples, read_batch
from tests.attr.subjects import FLOW_METHODS, INPUT_METHODS
from tests.lightning_callbacks.models import tiny_swin, tiny_vit

PAIRS = [(0, 1), (1, 3)]
# Not that whose layers are numbered, for behind a layer they are numbered anew.
ON_THE_TAPE = {name: make for name, make in FLOW_METHODS.items() if "from layer" not in name}
ON_THE_TAPE["full LRP"] = INPUT_METHODS["full LRP"]


def model():
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False)
    return nn.Sequential(*layers).double()


def arriving_on_the_way_to_the_inputs(method, network, layer, x, target):
    """The same from the tape of the whole forward pass."""
    entering = []
    place = network.get_submodule(layer)
    handle = place.register_forward_pre_hook(lambda _, args: entering.extend(args))
    with method._traced(Arguments(x)) as forward:
        handle.remove()
        value = forward.tape.find(entering[0])
        return method._relevance(forward, target, [value])[value].detach()


@pytest.mark.parametrize("name", ON_THE_TAPE)
@pytest.mark.parametrize(
    ("make", "layer"), [(tiny_vit, "blocks.0"), (tiny_vit, "blocks.5"), (tiny_swin, "layers.1")]
)
def test_a_layer_has_the_relevance_that_arrives_there(make, layer, name):
    network, x = make()
    method = ON_THE_TAPE[name]
    found = layer_relevance(network, [layer], method, Samples((x,), None), PAIRS)[layer]
    expected = arriving_on_the_way_to_the_inputs(method(network), network, layer, x, [1, 3])
    torch.testing.assert_close(found, expected.float().flatten(), rtol=1e-6, atol=0)


def test_relevance_of_a_layer_without_a_skip_is_conserved():
    network, x = model(), torch.randn(2, 4, dtype=torch.float64)
    pairs = [(0, 2), (1, 1), (1, 0)]
    scores = network(x).detach()
    expected = [float(scores[pair]) for pair in pairs]
    for layer, width in (("2", 6), ("3", 5)):
        values = layer_relevance(network, [layer], InputXGradient, Samples((x,), None), pairs)[
            layer
        ]
        assert values.reshape(3, width).sum(1).tolist() == pytest.approx(expected, rel=1e-5)
    assert not x.requires_grad
    assert not any(part._forward_hooks for part in network.modules())


def test_methods_that_repeat_the_samples():
    # The mask is a further argument, one for each sample; the method takes 50 steps of each.
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.middle, self.last = nn.Identity(), nn.Linear(4, 3, bias=False)

        def forward(self, x, mask):
            return self.last(self.middle(x.tanh()) * mask)

    network = Masked().double()
    x, mask = torch.randn(2, 4).double(), torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 1]]).double()
    samples = read_batch({"x": x, "mask": mask}, network.forward)
    values = layer_relevance(network, ["middle"], IntegratedGradients, samples, [(0, 1), (1, 2)])[
        "middle"
    ]
    expected = x.tanh() * mask * network.last.weight[[1, 2]]
    torch.testing.assert_close(values, expected.detach().float().flatten())


def plain_gradient(network):
    return ConservativeLRP(network, attention_rule=False, layer_norm_rule=False)


@pytest.mark.parametrize("method", [InputXGradient, plain_gradient])
@pytest.mark.parametrize("size", [1, None])
def test_a_layer_that_is_called_twice_has_the_values_of_both_calls(size, method):
    class Twice(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](self[0](x)))

    network = Twice(nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    values = layer_relevance(
        network,
        ["0"],
        method,
        Samples((x,), None),
        [(0, 1), (1, 2)],
        internal_batch_size=size,
    )["0"]
    scores = network(x)
    sums = values.reshape(2, 2, 4).sum(2)
    expected = torch.stack([scores[0, 1], scores[1, 2]]).expand(2, 2)
    torch.testing.assert_close(sums, expected.detach().float())


def test_the_layer_may_write_into_its_input():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    samples = Samples((torch.randn(2, 4).double(),), None)
    for method in (Saliency, lambda m: ConservativeLRP(m, attention_rule=False)):
        assert layer_relevance(network, ["1"], method, samples, PAIRS[:1])["1"].abs().sum() > 0


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.attend(x + 1).mean(1))

    def attend(self, x):
        return self.attention(query=x, key=x, value=x)[0]


def test_frozen_layers_and_an_input_in_several_places_by_name():
    network, x = Attends().double().requires_grad_(False), torch.randn(2, 5, 8).double()
    found = layer_relevance(network, ["attention"], InputXGradient, Samples((x,), None), PAIRS)[
        "attention"
    ]
    # A constant is added before, so the inputs have the same gradient.
    gradient = Saliency(network).attribute(x, target=[1, 3], abs=False)
    torch.testing.assert_close(found, ((x + 1) * gradient).float().flatten())


def test_layers_with_samples_in_another_dimension_are_refused():
    class TokensFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.layer(x.transpose(0, 1)).mean(0))

    # As many tokens as samples.
    samples = Samples((torch.randn(2, 2, 8),), None)
    with pytest.raises(ValueError, match=r"'layer' has been given \[\(2, 2, 8\)\]"):
        layer_relevance(TokensFirst().eval(), ["layer"], AttnLRP, samples, PAIRS)


def test_all_layers_are_explained_in_one_call():
    network, x = tiny_vit()
    layers, passes = ["blocks.0", "blocks.5", "norm"], []
    one_by_one = {
        layer: layer_relevance(network, [layer], AttnLRP, Samples((x,), None), PAIRS)[layer]
        for layer in layers
    }
    network.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    found = layer_relevance(network, layers, AttnLRP, Samples((x,), None), PAIRS)
    assert found.keys() == one_by_one.keys()
    for layer, values in found.items():
        torch.testing.assert_close(values, one_by_one[layer], rtol=0, atol=0)
    # Twice to see what the layers take, without a gradient, and once to explain.
    assert passes == [False, False, True]


def test_layers_that_are_not_called_are_refused():
    class Lazy(nn.Sequential):
        def forward(self, x):
            return self[1](x)

    network = Lazy(nn.Linear(4, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="'0' has been given nothing: it was not called"):
        layer_relevance(network, ["0"], Saliency, Samples((torch.randn(1, 4),), None), [(0, 1)])[
            "0"
        ]


class Checkpointed(nn.Sequential):
    reentrant = None

    def forward(self, x):
        x = self[0](x)
        if self.reentrant is not None:
            return self[2](checkpoint(self[1], x, use_reentrant=self.reentrant))
        return self[2](self[1](x))


@pytest.mark.parametrize("method", [IntegratedGradients, InputXGradient])
def test_layers_whose_activations_are_recomputed(method):
    torch.manual_seed(0)
    network = Checkpointed(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    samples = Samples((torch.randn(2, 4).double(),), None)
    expected = layer_relevance(network, ["1"], method, samples, PAIRS[:1])["1"]
    network.reentrant = False
    found = layer_relevance(network, ["1"], method, samples, PAIRS[:1])["1"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    network.reentrant = True
    with pytest.raises(RuntimeError, match="does not require grad"):
        layer_relevance(network, ["1"], method, samples, PAIRS[:1])["1"]
