"""GradCAM of one layer of attention, written out."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttentionGradCam
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import drawn


class OneLayer(nn.Module):
    """Keeps its attention probabilities; the score is read from the first token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        scores = query @ key.mT
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None], -torch.inf)
        self.probabilities = scores.softmax(-1)
        mixed = (self.probabilities @ value).transpose(1, 2).flatten(2)
        return self.head((x + mixed)[:, 0])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("pooling", ["row", "map", "open"])
def test_values_are_those_by_hand(pooling: str, rescale: bool) -> None:
    model, x = OneLayer(), drawn(4, 5, 8)
    score = model(x.requires_grad_())[:, 1].sum()
    kept = model.probabilities
    (slopes,) = torch.autograd.grad(score, kept)
    pooled = slopes[:, :, :1] if pooling == "row" else slopes
    cam = (pooled.mean((-1, -2), keepdim=True) * kept.detach()).mean(1).relu()
    if rescale:
        whole = cam[:, :1] if pooling == "row" else cam
        low, high = whole.amin((1, 2), keepdim=True), whole.amax((1, 2), keepdim=True)
        cam = (cam - low) / (high - low).masked_fill(high == low, 1.0)
    method = AttentionGradCam(model, pooling=pooling, rescale=rescale)
    found = method.attribute_tokens(x.detach(), target=1)
    assert found.any(1).tolist().count(True) > 1
    assert_close(found, cam[:, 0], 1e-12)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("pooling", ["row", "open"])
def test_padding_does_not_count(pooling: str, rescale: bool) -> None:
    model, x = OneLayer(), drawn(4, 5, 8)
    method = AttentionGradCam(model, pooling=pooling, rescale=rescale)
    padding = (torch.arange(5) >= 3).expand(4, 5)
    found = method.attribute_tokens(x, target=1, additional_forward_args=padding)
    expected = method.attribute_tokens(x[:, :3], target=1)
    assert expected.any(1).tolist().count(True) > 1
    assert_close(found[:, :3], expected, 1e-12)
    assert not found[:, 3:].any()
