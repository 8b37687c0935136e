"""Learned queries that attend to each other, against matrices multiplied by hand."""

from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import drawn, with_random_weights
from tests.rules.streams import normalized

WIDTH, HEADS = 16, 2


class Kept(nn.MultiheadAttention):
    """The same as its parent, samples second, written out so that its probabilities are kept."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:  # type: ignore[override]
        projected = zip(
            (query, key, value),
            self.in_proj_weight.chunk(3),
            self.in_proj_bias.chunk(3),
            strict=True,
        )
        query, key, value = (
            nn.functional.linear(x, weight, bias).unflatten(2, (HEADS, -1)).permute(1, 2, 0, 3)
            for x, weight, bias in projected
        )
        self.probabilities = (query @ key.mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
        mixed = (self.probabilities @ value).permute(2, 0, 1, 3).flatten(2)
        return self.out_proj(mixed), None


class Detector(nn.Module):
    """Learned queries as in the authors' DETR: samples second, positions added in each layer."""

    def __init__(self, attention: type[nn.MultiheadAttention]) -> None:
        super().__init__()
        self.attend = nn.ModuleList(attention(WIDTH, HEADS) for _ in range(5))
        self.places = nn.Parameter(torch.empty(4, 1, WIDTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, features: Tensor) -> Tensor:
        memory = features.transpose(0, 1)
        encoder, *decoder = self.attend
        memory = self.norm(memory + encoder(memory, memory, memory)[0])
        places = self.places.repeat(1, len(features), 1)
        found = torch.zeros_like(places)
        for own, cross in (decoder[:2], decoder[2:]):
            found = self.norm(found + own(found + places, found + places, found)[0])
            found = self.norm(found + cross(found + places, memory, memory)[0])
        return self.head(found.transpose(0, 1))


def test_learned_queries_with_the_samples_second():
    written_out = with_random_weights(Detector(Kept))
    model = Detector(nn.MultiheadAttention).double().eval()
    model.load_state_dict(written_out.state_dict())
    features, target = drawn(3, 6, WIDTH, seed=1), (2, 1)
    score = written_out(features)[(slice(None), *target)].sum()
    kept = [attention.probabilities for attention in written_out.attend]
    gradients = torch.autograd.grad(score, kept)
    encoder, *decoder = (
        (g * p).relu().mean(1).detach() for g, p in zip(gradients, kept, strict=True)
    )
    memory, found, mixed = (
        torch.eye(6) + encoder,
        torch.eye(4).to(encoder),
        torch.zeros(3, 4, 6).to(encoder),
    )
    for own, cross in (decoder[:2], decoder[2:]):
        found, mixed = found + own @ found, mixed + own @ mixed
        mixed = mixed + normalized(found).mT @ cross @ normalized(memory)

    method = GenericAttentionRelevance(model)

    assert_close(method.attribute_tokens(features, target), mixed[:, target[0]])
    assert_close(method.relevance_maps(features, target)["learned", "features"], mixed)
