"""A model of two streams with cross-attention, and its maps weighted by their gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer.rules.streams import update
from tests.attr.tiny_models import drawn, with_random_weights

WIDTH, HEADS = 16, 2


def normalized(relevance: Tensor) -> Tensor:
    """Eq. 8, 9 of the paper."""
    return update.normalized(relevance - torch.eye(relevance.shape[-1]))


class Attention(nn.Module):
    """Attention whose probabilities are kept, with their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.probabilities: list[Tensor] = []

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, x in ((self.query, tokens), (self.key, context), (self.value, context))
        )
        weights = torch.softmax(query @ key.mT / 3, -1)
        self.probabilities.append(weights)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Translator(nn.Module):
    """Two encoder layers; a decoder whose cross-attention module is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Attention() for _ in range(2))
        self.decoder, self.cross = Attention(), Attention()
        self.head = nn.Linear(WIDTH, 5)

    def between(self, memory: Tensor) -> Tensor:
        return memory

    def forward(self, source: Tensor, words: Tensor) -> Tensor:
        for layer in self.encoder:
            source = source + layer(source, source)
        source = self.between(source)
        for _ in range(2):
            words = words + self.decoder(words, words)
            words = words + self.cross(words, source)
        return self.head(words)


class Placed(Translator):
    """The decoder reads the features of the source, concatenated with learned ones."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(6, WIDTH))
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)

    def between(self, memory: Tensor) -> Tensor:
        return self.narrow(torch.cat([memory, self.beside(memory)], -1))

    def beside(self, memory: Tensor) -> Tensor:
        return self.places.expand_as(memory)


def given(kind: type = Translator) -> tuple[Any, tuple[Tensor, Tensor], tuple[int, int]]:
    model = with_random_weights(kind())
    return model, (drawn(3, 6, WIDTH, seed=1), drawn(3, 4, WIDTH, seed=2)), (2, 1)


def weighted_attention(model: Translator, inputs: Any, target: tuple[int, int]) -> list[Tensor]:
    """The maps of all layers in their order: two of the encoder, then those of the decoder."""
    modules = [*model.encoder, model.decoder, model.cross]
    for module in modules:
        module.probabilities.clear()
    score = model(*inputs)[(slice(None), *target)].sum()
    kept = [p for module in modules for p in module.probabilities]
    gradients = torch.autograd.grad(score, kept)
    maps = [(g * p).relu().mean(1).detach() for g, p in zip(gradients, kept, strict=True)]
    first, second, *decoder = maps
    return [first, second, decoder[0], decoder[2], decoder[1], decoder[3]]
