"""Properties of LeGrad: samples are independent, and a model may be written in several ways."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from captum_transformer import Contrast, LeGrad
from tests.attr.subjects import assert_close, subject
from tests.attr.test_nan import Model
from tests.attr.tiny_models import (
    CLASSES,
    drawn,
    hf_vit,
    images,
    timm_vit,
    torchvision_vit,
    with_random_weights,
)

TARGET = [1, 4, 0]


@pytest.mark.parametrize(
    "name",
    [
        "timm DeiT, distilled",
        "torchvision ViT",
        "Transformers ViT",
        "GPT-2",
        "nn.TransformerEncoder",
        "nn.TransformerEncoder, norm first",
        "nn.TransformerEncoder, tokens first",
        "pixels and ids",
    ],
)
def test_samples_do_not_depend_on_each_other(name: str) -> None:
    whole = subject(name).attribute_tokens(LeGrad)
    whole = whole if isinstance(whole, tuple) else (whole,)

    for sample in range(3):
        alone = subject(name).samples([sample]).attribute_tokens(LeGrad)
        for part, expected in zip(
            whole, alone if isinstance(alone, tuple) else (alone,), strict=True
        ):
            assert_close(part[sample : sample + 1], expected)
    for part, count in zip(whole, subject(name).tokens, strict=True):
        assert part.shape == (3, count)
        assert part.amin() == 0
        assert part.amax(1).eq(1).all()


def test_the_same_model_written_differently_has_the_same_map() -> None:
    assert_close(
        LeGrad(hf_vit("eager")).attribute_tokens(images(), TARGET),
        LeGrad(hf_vit("sdpa")).attribute_tokens(images(), TARGET),
        1e-5,  # Transformers computes the softmax in float32 where it is written out
    )
    tokens_first = subject("nn.TransformerEncoder, tokens first").attribute_tokens(LeGrad)
    assert_close(tokens_first, subject("nn.TransformerEncoder").attribute_tokens(LeGrad))


def test_a_contrast_is_the_score_of_the_difference() -> None:
    model, x = torchvision_vit(), drawn(2, 3, 8, 8)

    once = LeGrad(lambda images: (scores := model(images))[:, 1] - scores[:, 2]).attribute(x)
    assert_close(LeGrad(model).attribute(x, Contrast(1, rather_than=2)), once)


def test_several_targets() -> None:
    model, x = torchvision_vit(), drawn(2, 3, 8, 8)
    for target, found in zip([1, 2], LeGrad(model).attribute_targets(x, [1, 2]), strict=True):
        assert_close(found, LeGrad(model).attribute(x, target))


def test_a_map_of_one_value_is_zero() -> None:
    model: Any = timm_vit()
    nn.init.zeros_(model.head.weight)
    assert not LeGrad(model).attribute(images(), TARGET).any()


class WritesIntoViews(nn.Module):
    """Blocks and a head that write into views of their tokens."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            timm.models.vision_transformer.Block(16, 2, qkv_bias=True) for _ in range(3)
        )
        self.head, self.writes = nn.Linear(16, CLASSES), writes

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self._scaled(block(x))
        return self.head(self._scaled(x)[:, 0])

    def _scaled(self, x: Tensor) -> Tensor:
        if self.writes:
            x = x.clone()
            x[:, 1:] *= 0.5
            return x
        return torch.cat([x[:, :1], 0.5 * x[:, 1:]], 1)


def test_writes_into_views_equal_operations_without_views() -> None:
    models = [with_random_weights(WritesIntoViews(writes=writes)) for writes in (True, False)]
    x = drawn(3, 5, 16)
    assert_close(*(LeGrad(model).attribute_tokens(x, TARGET) for model in models))


def test_attention_with_nan_gives_no_map() -> None:
    """Even if the kernel replaces NaN by numbers."""
    model = Model()
    model.qkv.weight.data[1, 0] = torch.nan
    assert LeGrad(model).attribute(torch.randn(2, 5, 8), 1).isnan().any()
