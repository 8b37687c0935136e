"""Learned queries that read the tokens of a model, against matrices multiplied by hand."""

from collections.abc import Callable
from typing import Any

import timm.models.cait
import torch
from torch import Tensor

from captum_transformer import AttentionRollout, GenericAttentionRelevance, TransformerAttribution
from captum_transformer.calling import Arguments
from captum_transformer.trace.heads import by_head
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import CLASSES, images, timm_vit, with_random_weights

SIZES: dict[str, Any] = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 16, "num_heads": 2}
METHODS: list[Callable[..., Any]] = [
    GenericAttentionRelevance,
    TransformerAttribution,
    lambda model: AttentionRollout(model, normalize_rows=False),
]


def maps(method: Any, inputs: Tensor, target: int) -> list[Tensor]:
    """The method's map of each attention call, averaged over the heads."""
    with method._traced(Arguments(inputs)) as forward:
        question = method._selection(forward, target, ())
        blocks = method._maps(question, forward.calls)
        return [by_head(call, blocks(call, slice(None))).mean(1).detach() for call in forward.calls]


def test_attention_pooling_hands_its_row_on():
    model = timm_vit(global_pool="map", class_token=False)
    for build in METHODS:
        method = build(model)
        one, two, pool = maps(method, images(), 2)
        eye = torch.eye(6, dtype=torch.float64)

        expected = pool @ (eye + two) @ (eye + one)

        assert_close(method.attribute_tokens(images(), 2), expected[:, 0])


def test_class_attention_adds_to_the_class_token():
    model = with_random_weights(
        timm.models.cait.Cait(**SIZES, depth=2, num_classes=CLASSES, init_values=0.5)
    )
    for build in METHODS:
        method = build(model)
        one, two, first, second = maps(method, images(), 2)
        eye = torch.eye(6, dtype=torch.float64)
        patches = (eye + two) @ (eye + one)
        read = first[..., 1:] @ patches

        expected = read + second[..., :1] @ read + second[..., 1:] @ patches

        assert_close(method.attribute_tokens(images(), 2), expected[:, 0])
