"""Models that checkpoint activations: explained as without it, or refused with what to do."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from captum_transformer.errors import ExplanationError, UnseenOperationError
from tests.attr.subjects import METHODS, assert_close, bert, ids, images, timm_vit

# Their rules change the backward pass, in which what is recomputed does not know of them.
CHANGES_GRADIENT = {
    name for name in METHODS if name.startswith(("ConservativeLRP", "AttnLRP", "GIM"))
}


def checkpointed(model: Any, *, use_reentrant: bool) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        tokens = model._pos_embed(model.patch_embed(images))
        for block in model.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=use_reentrant)
        scores: Tensor = model.head(model.norm(tokens)[:, 0])
        return scores

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_timm_with_checkpointing(method: str) -> None:
    model = timm_vit().double()
    expected = METHODS[method](model).attribute(images(), 1)
    model.set_grad_checkpointing()
    if method in CHANGES_GRADIENT:
        with pytest.raises(ExplanationError, match=r"set_grad_checkpointing\(False\)"):
            METHODS[method](model).attribute(images(), 1)
    else:
        assert_close(METHODS[method](model).attribute(images(), 1), expected)
    assert model.grad_checkpointing


@pytest.mark.parametrize("method", METHODS)
def test_reentrant_checkpoints_are_refused(method: str) -> None:
    run = checkpointed(timm_vit().double(), use_reentrant=True)
    with pytest.raises(UnseenOperationError, match="use_reentrant=False"):
        METHODS[method](run).attribute(images(), 1)


def test_what_changes_no_gradient_works_through_other_checkpoints() -> None:
    model = timm_vit().double()
    run = checkpointed(model, use_reentrant=False)
    for method in METHODS.keys() - CHANGES_GRADIENT:
        expected = METHODS[method](model).attribute(images(), 1)
        assert_close(METHODS[method](run).attribute(images(), 1), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_transformers_checkpoints_only_in_training(method: str) -> None:
    model = bert().double()
    expected = METHODS[method](model).attribute(ids(), 1)
    model.gradient_checkpointing_enable()
    model.train()
    assert_close(METHODS[method](model).attribute(ids(), 1), expected)
    assert model.training
