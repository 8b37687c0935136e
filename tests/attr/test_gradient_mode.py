"""Explanations don't depend on the caller's gradient mode, nor on how the inputs were computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from captum_transformer import GenericAttentionRelevance
from tests.attr.subjects import METHODS, as_tuple, assert_close, attributed, subject


@contextmanager
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("mode", [torch.no_grad, _inference], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm Swin", "BERT", "nn.TransformerEncoder", "pixels and ids"])
def test_the_callers_gradient_mode_does_not_matter(name: str, method: str, mode: Any) -> None:
    given = subject(name)
    with mode():
        # Inference tensors if made in inference mode.
        made = given.map(torch.clone)
        assert made.tensors[0].is_inference() == (mode is _inference)
        result = made.attribute(METHODS[method])

    assert_close(result, attributed(name, method), relative=0)
    assert not any(t.is_inference() for t in as_tuple(result))


@pytest.mark.parametrize("method", METHODS)
def test_a_target_made_in_inference_mode(method: str) -> None:
    given = subject("timm ViT")
    with torch.inference_mode():
        result = given.attribute(METHODS[method], target=torch.tensor(given.target))

    assert_close(result, attributed("timm ViT", method), relative=0)


def test_an_input_that_is_part_of_a_graph() -> None:
    given = subject("timm ViT")
    leaf = given.inputs.clone().requires_grad_()
    pixels = leaf * 1.0

    result = GenericAttentionRelevance(given.model).attribute(pixels, given.target)

    assert not result.requires_grad
    assert leaf.grad is None
    pixels.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))
    assert_close(result, attributed("timm ViT", "GenericAttentionRelevance"), relative=0)
