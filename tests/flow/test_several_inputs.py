"""Inputs that become one set of tokens: each counts once, as if it were the only one."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttentionRollout, GenericAttentionRelevance, TransformerAttribution


class Regions(nn.Module):
    """What is seen and where it is, projected and averaged as in LXMERT, before attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.place = nn.Linear(6, 8), nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, seen: Tensor, place: Tensor) -> Tensor:
        x = (self.seen(seen) + self.place(place)) / 2
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])


@pytest.mark.parametrize(
    "method", [GenericAttentionRelevance, AttentionRollout, TransformerAttribution]
)
def test_each_of_two_inputs_gets_what_it_gets_alone(method) -> None:
    torch.manual_seed(0)
    model = Regions().double().eval()
    seen, place = (torch.randn(2, 5, n, dtype=torch.float64) for n in (6, 4))
    explain = method(model)
    both = explain.attribute_tokens((seen, place), target=1)
    alone = (
        explain.attribute_tokens(seen, 1, place),
        method(lambda place, seen: model(seen, place)).attribute_tokens(place, 1, seen),
    )
    torch.testing.assert_close(both, alone)
    torch.testing.assert_close(both[0], both[1])
    assert both[0].sum() > 0
