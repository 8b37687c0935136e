"""Samples may be explained a few at a time: the result is that of all at once."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    ConservativeLRP,
    Contrast,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.errors import InvalidInputError

SAMPLES = 5


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor, padding: Tensor | None = None, scale: Any = 1.0) -> Tensor:
        encoded = self.encoder(tokens, src_key_padding_mask=padding)
        return self.head(encoded.mean(1)) * scale


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier().double()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(SAMPLES, 3, 8, dtype=torch.float64)


TARGETS = {
    "one for all": 2,
    "tensor": torch.tensor([0, 1, 2, 3, 0]),
    "list": [0, 1, 2, 3, 0],
    "contrast": Contrast([0, 1, 2, 3, 0], rather_than=1),
    "contrasts": [Contrast(i % 4, rather_than=(i + 1) % 4) for i in range(SAMPLES)],
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_the_result_is_that_of_one_batch(model, tokens, target, size):
    seen = []

    def run(tokens: Tensor) -> Tensor:
        seen.append(len(tokens))
        return model(tokens)

    whole = TransformerAttribution(model).attribute(tokens, target)
    parts = TransformerAttribution(run).attribute(tokens, target, internal_batch_size=size)
    torch.testing.assert_close(parts, whole)
    assert max(seen) == min(size, SAMPLES)
    assert sum(seen) == SAMPLES


@pytest.mark.parametrize("by_name", [False, True])
def test_arguments_for_each_sample_are_divided(model, tokens, by_name):
    padding = torch.zeros(SAMPLES, 3, dtype=torch.bool)
    padding[1, 2] = padding[4, 1:] = True
    further: dict[str, Any] = (
        {"additional_forward_kwargs": {"padding": padding}}
        if by_name
        else {"additional_forward_args": (padding, torch.tensor(2.0))}
    )
    method = GenericAttentionRelevance(model)
    whole = method.attribute_tokens(tokens, 1, **further)
    parts = method.attribute_tokens(tokens, 1, **further, internal_batch_size=2)
    torch.testing.assert_close(parts, whole)
    assert not torch.allclose(method.attribute_tokens(tokens, 1), whole)


def test_several_targets(model, tokens):
    method = AttentionRollout(model)
    targets = [0, torch.tensor([0, 1, 2, 3, 0])]
    whole = method.attribute_targets({"tokens": tokens}, targets)
    parts = method.attribute_targets({"tokens": tokens}, targets, internal_batch_size=3)
    torch.testing.assert_close(parts, whole)


def test_the_convergence_delta_has_all_samples(model, tokens):
    method = ConservativeLRP(model)
    whole = method.attribute(tokens, 1, return_convergence_delta=True)
    parts = method.attribute(tokens, 1, return_convergence_delta=True, internal_batch_size=2)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("size", [0, -1])
def test_bad_sizes_are_refused(model, tokens, size):
    with pytest.raises(InvalidInputError, match=f"at least 1, got {size}"):
        ConservativeLRP(model).attribute(tokens, 1, internal_batch_size=size)
