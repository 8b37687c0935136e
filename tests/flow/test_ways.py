"""Relevance of one layer that leads back to no input is refused."""

import pytest
import torch
from torch import nn

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
)
from captum_transformer.errors import UnsupportedOperationError
from tests.attr.tiny_models import timm_vit
from tests.flow.models import WIDTH, Model, maps_of

SINGLE = [RawAttention, AttentionGradCam, PartialLRP]
LAST = [
    *SINGLE,
    lambda model: GenericAttentionRelevance(model, start_layer=-1),
    lambda model: AttentionRollout(model, start_layer=-1),
]


class FramesThenTime(nn.Module):
    """A Transformer for each frame, and one for what was read from each of them."""

    def __init__(self, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frames = timm_vit(num_classes=0, **options)
        self.time = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True).double().eval()
        self.head = nn.Linear(16, 4).double()

    def forward(self, video):
        frames = self.frames(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return self.head(self.time(frames).mean(1))


@pytest.fixture
def video():
    return torch.randn(2, 3, 3, 8, 12, dtype=torch.float64)


@pytest.mark.parametrize("method", LAST)
def test_a_class_token_of_each_frame_leads_back_by_attention_alone(method, video):
    with pytest.raises(UnsupportedOperationError, match="leads back to no input"):
        method(FramesThenTime()).attribute(video, 1)


@pytest.mark.parametrize("method", LAST)
def test_the_mean_of_each_frame_leads_back(method, video):
    model = FramesThenTime(global_pool="avg", class_token=False)
    found = method(model).attribute(video, 1)
    total = found.sum((2, 3, 4))
    # All pixels of a frame get the same: the last layer ties frames.
    torch.testing.assert_close(
        found, (total / found[0, 0].numel())[..., None, None, None].expand_as(found)
    )


@pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout])
def test_all_layers_together_lead_back(method, video):
    found = method(FramesThenTime()).attribute(video, 1)
    assert found.sum((2, 3, 4)).min() > 0


@pytest.mark.parametrize(
    ("picked", "places"),
    [(slice(2, None), range(6)), ([3, 4], [1, 2]), (torch.tensor([2, 5]), [0, 3])],
)
def test_picked_tokens_of_the_input_lead_back(picked, places):
    """Learned tokens are concatenated in front, and some tokens are picked after a layer."""

    class Prompted(Model):
        def __init__(self):
            super().__init__()
            self.prompts = nn.Parameter(torch.randn(1, 2, WIDTH, dtype=torch.float64))

        def block(self, block, x):
            if block is self.blocks[0]:
                x = torch.cat([self.prompts.expand(len(x), -1, -1), x], 1)
            else:
                x = x[:, picked]
            weights, out = maps_of(block, block.norm(x))
            return x + out, weights

    model, x, maps = Prompted(), torch.randn(2, 6, WIDTH, dtype=torch.float64), []
    model(x, maps)
    expected = torch.zeros(2, 6, dtype=x.dtype)
    expected[:, list(places)] = maps[-1].mean(1)[:, 0].detach()
    torch.testing.assert_close(RawAttention(model).attribute_tokens(x, 1), expected)
