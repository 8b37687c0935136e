"""Which entries are one token's is read off what the model mixes, not off the number of axes."""

import pytest
from torch import Tensor, nn

from captum_transformer import ConservativeLRP, GenericAttentionRelevance
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import drawn, encoder, with_random_weights


class TokensToToken(nn.Module):
    """Attention on unfolded pixels, 8 x 8 tokens of 147 values."""

    def __init__(self) -> None:
        super().__init__()
        self.unfold = nn.Unfold(7, stride=4, padding=2)
        self.first = nn.TransformerEncoderLayer(147, 1, 32, batch_first=True)
        self.project = nn.Linear(147, 32)
        self.second = nn.TransformerEncoderLayer(32, 2, 32, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.first(self.unfold(image).transpose(1, 2))
        return self.head(self.second(self.project(tokens)).mean(1))


@pytest.mark.parametrize(
    "method", ["GenericAttentionRelevance", "AttentionRollout", "RawAttention"]
)
def test_tokens_of_unfolded_pixels(method: str) -> None:
    model, image = with_random_weights(TokensToToken()), drawn(2, 3, 32, 32)
    unfolded = model.unfold(image).transpose(1, 2)

    def on_tokens(tokens: Tensor) -> Tensor:
        return model.head(model.second(model.project(model.first(tokens))).mean(1))

    found = METHODS[method](model).attribute_tokens(image, 1)

    assert found.shape == (2, 64)
    assert_close(found, METHODS[method](on_tokens).attribute_tokens(unfolded, 1))


class Series(nn.Module):
    """Channels first, as of a spectrogram, and mixed place by place."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.encoder = nn.Conv1d(4, 16, 1), encoder()

    def forward(self, series: Tensor) -> Tensor:
        return self.encoder(self.mix(series).transpose(1, 2))


@pytest.mark.parametrize("method", [GenericAttentionRelevance, ConservativeLRP])
def test_channels_first(method: type) -> None:
    model, series = with_random_weights(Series()), drawn(2, 4, 7)

    found = method(model).attribute_tokens(series, 1)

    assert found.shape == (2, 7)
    assert_close(found, method(model).attribute(series, 1).sum(1))
