"""Gates that attention has a part in, in the token flow."""

import torch
from torch import Tensor, nn

from captum_transformer import AttentionRollout


class Gated(nn.Module):
    """A gate for each token, the same for all of its features, that attention has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gate, self.head = nn.Linear(6, 18), nn.Linear(6, 1), nn.Linear(6, 4)
        self.double()

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.mT).softmax(-1)
        if maps is not None:
            maps.append(weights)
        return self.head((x * self.gate(x + weights @ v).sigmoid())[:, 0])


def test_a_gate_that_is_broadcast_counts_its_tokens_once():
    model, x, maps = Gated(), torch.randn(2, 5, 6, dtype=torch.float64), []
    model(x, maps)
    identity = torch.eye(5, dtype=x.dtype)[0]
    for with_identity, counted in ((False, 0), (True, 1)):
        method = AttentionRollout(model, normalize_rows=False, with_identity=with_identity)
        expected = maps[0][:, 0].detach() + counted * identity
        torch.testing.assert_close(method.attribute_tokens(x), expected)
