"""Relevance of one layer that leads back to no input is refused."""

import pytest
import torch
from torch import Tensor, nn

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


class TokensThenTime(nn.Module):
    """Attention within each frame, and then among the tokens at the same place of all frames."""

    def __init__(self, place: int | None, *, learned_frame: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place = place
        self.first = nn.Parameter(torch.randn(1, 1, 1, WIDTH))
        self.frame = nn.Parameter(torch.randn(1, 1, 1, WIDTH)) if learned_frame else None
        layers = (nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True) for _ in range(2))
        self.space, self.time = layers
        self.double().eval()

    def forward(self, tokens: Tensor) -> Tensor:  # (samples, frames, tokens, WIDTH)
        x = torch.cat([self.first.expand(*tokens.shape[:2], 1, -1), tokens], 2)
        x = self.space(x.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        if self.frame is not None:
            x = torch.cat([self.frame.expand(len(x), 1, x.shape[2], -1), x], 1)
        x = x.transpose(1, 2)
        x = self.time(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x.mean((1, 2)) if self.place is None else x[:, self.place].mean(1)


@pytest.mark.parametrize("learned_frame", [False, True])
@pytest.mark.parametrize("method", [m for m in LAST if m is not AttentionGradCam])  # needs heads
def test_only_the_tokens_that_are_read_have_to_lead_back(method, learned_frame):
    """The last layer attends to tokens of inputs as well, but not for the score."""
    tokens = torch.randn(2, 3, 4, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match=r"no input|No attention that counts"):
        method(TokensThenTime(0, learned_frame=learned_frame)).attribute(tokens, 1)
    for place in (1, None):
        model = TokensThenTime(place, learned_frame=learned_frame)
        found = method(model).attribute(tokens, 1).abs().sum((0, 1, 3))
        assert (found > 0).tolist() == [place is None or place == 1 + n for n in range(4)]


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
