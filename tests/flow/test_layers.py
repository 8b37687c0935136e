"""Which attention calls are one layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError

WIDTH, HEADS = 12, 3
METHODS = [
    AttentionGradCam,
    AttentionRollout,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
]


def _attend(q, k, v):
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


PARTS = {
    "queries": lambda q, k, v: torch.cat([_attend(part, k, v) for part in q.split(2, 1)], 1),
    "samples": lambda q, k, v: torch.cat(
        [_attend(*parts) for parts in zip(q.split(1), k.split(1), v.split(1), strict=True)]
    ),
    "both": lambda q, k, v: torch.stack(
        [
            torch.cat([_attend(part[None], k[n : n + 1], v[n : n + 1])[0] for part in row.split(3)])
            for n, row in enumerate(q)
        ]
    ),
}


class Model(nn.Module):
    def __init__(self, attend=_attend, depths=(2,)):
        super().__init__()
        torch.manual_seed(0)
        self.attend = attend
        self.branches = nn.ModuleList(
            nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(depth)) for depth in depths
        )
        self.head = nn.Linear(WIDTH, 3)
        self.double()

    def forward(self, x):
        outputs = []
        for layers in self.branches:
            tokens = x
            for layer in layers:
                tokens = tokens + self.attend(*layer(tokens).chunk(3, -1))
            outputs.append(tokens)
        return self.head(sum(outputs[1:], outputs[0]).mean(1))


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("part", PARTS)
def test_a_layer_in_parts_is_the_layer(method, part):
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    expected = method(Model()).attribute(x, 1)
    torch.testing.assert_close(method(Model(PARTS[part])).attribute(x, 1), expected)


def test_branches_side_by_side_are_counted_from_both_ends():
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    model = Model(depths=(2, 3))

    def read(layer):
        return RawAttention(model, layer=layer).attribute(x, 1)

    by_depth = [read(layer) for layer in (0, 1, 2)]
    from_last = [read(layer) for layer in (-3, -2, -1)]
    # The first calls of both branches; and the last ones, although one branch is shorter.
    assert not torch.equal(by_depth[0], from_last[0])
    assert not torch.equal(by_depth[2], from_last[2])
    both = [RawAttention(Model(depths=(depth,))) for depth in (2, 3)]
    for branch, one in zip(model.branches, both, strict=True):
        one.forward_func.branches[0].load_state_dict(branch.state_dict())
    torch.testing.assert_close(
        from_last[2].sum(), sum(method.attribute(x, 1).sum() for method in both)
    )
    with pytest.raises(InvalidLayerError, match=r"has 3 layers of attention.*from -3 to 2"):
        read(3)


@pytest.mark.parametrize("part", PARTS)
def test_a_layer_in_parts_has_no_map_of_its_own(part):
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="attention calls side by side"):
        RawAttention(Model(PARTS[part])).relevance_maps(x, 1)
    for pooling in ("row", "map"):
        with pytest.raises(UnsupportedOperationError, match="attention calls side by side"):
            AttentionGradCam(Model(PARTS[part]), pooling=pooling).attribute(x, 1)
