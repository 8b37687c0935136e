"""AttnLRP's rules conserve relevance, and don't change the forward pass."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import AttnLRP
from captum_transformer.calling.arguments import Arguments
from captum_transformer.rules.gradient import ATTN_LRP, attn_lrp, gim
from captum_transformer.trace import traced_forward
from tests.rules.by_hand import doubles, relevance
from tests.rules.test_activation import ACTIVATIONS, WRITTEN_IN_PYTHON
from tests.rules.test_product import ATTENTION, PRODUCTS, K, Q, V, X


class GatedBlock(nn.Module):
    """A block without attention's softmax and without biases: relevance is conserved in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.RMSNorm(6, eps=0.0)
        self.gate, self.up, self.down = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.double()

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def test_relevance_is_conserved_through_gated_blocks_without_biases():
    model = nn.Sequential(GatedBlock(), GatedBlock(), nn.Flatten(), nn.Linear(24, 1, bias=False))
    x = doubles(3, 4, 6)
    (result,) = relevance(model.double(), x)
    torch.testing.assert_close(result.sum((1, 2)), model(x)[:, 0].detach(), rtol=1e-7, atol=1e-7)


OPERATIONS = {
    **{name: (f, doubles(2, 6)) for name, f in {**ACTIVATIONS, **WRITTEN_IN_PYTHON}.items()},
    **{f"product, {name}": product for name, product in PRODUCTS.items()},
    **{f"attention, {name}": (f, Q, K, V) for name, (f, _) in ATTENTION.items()},
    "layer norm": (nn.LayerNorm(5).double(), X),
    "RMS norm": (nn.RMSNorm(5).double(), X),
    "group norm": (nn.GroupNorm(2, 4).double(), X),
}


RULES = {"AttnLRP": ATTN_LRP, "AttnLRP, gamma": attn_lrp(0.25, 1.0), "GIM": gim(2.0)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_every_bit_of_the_forward_pass_stays(rules, name, dtype):
    function, *inputs = OPERATIONS[name]
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function).to(dtype)
    inputs = [x.to(dtype) for x in inputs]
    expected = function(*(x.clone().requires_grad_() for x in inputs))

    with traced_forward(function, Arguments(tuple(inputs)), rules=rules) as forward:
        assert forward.output.dtype == expected.dtype
        assert torch.equal(forward.output, expected)


def test_there_is_no_convergence_delta():
    assert not AttnLRP(nn.Linear(2, 2)).has_convergence_delta()
