"""Models that checkpoint activations themselves: explained as without it, to the last bit."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from benchmarks.cost.memory import peak_bytes
from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LibraGrad,
    extend,
)
from captum_transformer.errors import ExplanationError
from tests.attr.subjects import METHODS
from tests.attr.tiny_models import bert, ids, images, timm_vit

KINDS = pytest.mark.parametrize("use_reentrant", [False, True])


def same(found: Tensor, expected: Tensor) -> None:
    """Not one bit is another: the same kernels run on the same numbers."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


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
    same(METHODS[method](model).attribute(images(), 1), expected)
    assert model.grad_checkpointing


@KINDS
@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_of_both_kinds(method: str, use_reentrant: bool) -> None:
    model = timm_vit().double()
    expected = METHODS[method](model).attribute(images(), 1)
    run = checkpointed(model, use_reentrant=use_reentrant)
    same(METHODS[method](run).attribute(images(), 1), expected)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_transformers_checkpoints_only_in_training(method: str) -> None:
    model = bert()
    expected = METHODS[method](model).attribute(ids(), 1)
    model.gradient_checkpointing_enable()
    model.train()
    same(METHODS[method](model).attribute(ids(), 1), expected)
    assert model.training


class Tokens(nn.Module):
    """Blocks as deep as wanted, each in a checkpoint of its own if a kind is chosen."""

    def __init__(self, depth: int, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 4 * width, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 3)
        self.use_reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            kind = self.use_reentrant
            x = block(x) if kind is None else checkpoint(block, x, use_reentrant=kind)
        scores: Tensor = self.head(x.mean(1))
        return scores


@KINDS
@pytest.mark.parametrize("make", [LibraGrad, AttnLRP, ConservativeLRP])
def test_the_forward_pass_keeps_less(make: Any, use_reentrant: bool) -> None:
    model, x = Tokens(8), torch.randn(2, 64, 16)

    def peak() -> int:
        return peak_bytes(lambda: make(model).attribute(x, 1), x.device)

    peak()  # what is allocated once
    plain = peak()
    model.use_reentrant = use_reentrant
    assert peak() < 0.4 * plain


@KINDS
def test_no_code_of_the_model_runs_twice(use_reentrant: bool) -> None:
    model, x = Tokens(2), torch.randn(2, 5, 16)
    expected = AttnLRP(model).attribute(x, 1)
    model.use_reentrant = use_reentrant
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(0))
    same(AttnLRP(model).attribute(x, 1), expected)
    assert len(calls) == 1


@KINDS
def test_random_numbers_are_the_same_when_run_again(use_reentrant: bool) -> None:
    model = Tokens(2)
    before = model.blocks[1].forward
    model.blocks[1].forward = lambda x: before(x + torch.randn_like(x))  # type: ignore[method-assign, misc]
    x = torch.randn(2, 5, 16)
    torch.manual_seed(1)
    expected = AttnLRP(model).attribute(x, 1)
    model.use_reentrant = use_reentrant
    torch.manual_seed(1)
    same(AttnLRP(model).attribute(x, 1), expected)


@KINDS
def test_nested_checkpoints_and_some_in_a_row(use_reentrant: bool) -> None:
    model, x = Tokens(4), torch.randn(2, 5, 16)
    expected = AttnLRP(model).attribute(x, 1)

    def both(x: Tensor) -> Tensor:
        x = checkpoint(model.blocks[1], x, use_reentrant=use_reentrant)
        return checkpoint(model.blocks[2], x, use_reentrant=False)

    def run(x: Tensor) -> Tensor:
        x = checkpoint(both, model.blocks[0](x), use_reentrant=use_reentrant)
        scores: Tensor = model.head(model.blocks[3](x).mean(1))
        return scores

    same(AttnLRP(run).attribute(x, 1), expected)


def test_torch_has_its_own_reentrant_checkpoints_back() -> None:
    model, x = Tokens(2), torch.randn(2, 5, 16)
    model.use_reentrant = True
    AttnLRP(model).attribute(x, 1)
    assert torch.utils.checkpoint.CheckpointFunction is CheckpointFunction
    with pytest.raises(IndexError):
        AttnLRP(lambda x: model(x)[99]).attribute(x, 1)
    assert torch.utils.checkpoint.CheckpointFunction is CheckpointFunction
    model(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_an_operation_that_depends_on_more_than_its_arguments_is_refused() -> None:
    times = iter(range(9))

    @extend.operation("input", extend.Kind.ENTRYWISE)
    def fickle(x: Tensor) -> Tensor:
        return x.tanh() if next(times) else x.sin() * x

    model = Tokens(2)

    def run(x: Tensor) -> Tensor:
        x = checkpoint(lambda x: fickle(model.blocks[0](x)), x, use_reentrant=False)
        scores: Tensor = model.head(x.mean(1))
        return scores

    plain = ConservativeLRP(run, attention_rule=False, layer_norm_rule=False)
    with pytest.raises(ExplanationError, match=r"`fickle`.*more than its arg"):
        plain.attribute(torch.randn(2, 5, 16), 1)


def test_an_operation_that_draws_runs_again_with_the_same_numbers() -> None:
    @extend.operation("input", extend.Kind.ENTRYWISE)
    def noisy(x: Tensor) -> Tensor:
        return x * torch.rand_like(x)

    model, options = Tokens(2), {"attention_rule": False, "layer_norm_rule": False}

    def run(x: Tensor, use: bool) -> Tensor:
        def first(x: Tensor) -> Tensor:
            return noisy(model.blocks[0](x))

        x = checkpoint(first, x, use_reentrant=False) if use else first(x)
        scores: Tensor = model.head(x.mean(1))
        return scores

    x = torch.randn(2, 5, 16)
    maps: Mapping[bool, Tensor] = {}
    for use in (False, True):
        torch.manual_seed(2)
        maps[use] = ConservativeLRP(run, **options).attribute(x, 1, use)  # type: ignore[index]
    same(maps[True], maps[False])


def test_writes_in_place_and_views_within_a_checkpoint() -> None:
    model = Tokens(2)

    def inner(x: Tensor) -> Tensor:
        x = model.blocks[0](x)
        y = x * 2
        y[:, 1:] += x[:, :-1].tanh()
        y[:, 0].mul_(y[:, 2].detach().clone())
        y.relu_()
        z = torch.zeros_like(y)
        z[..., :8] = y[..., 8:]
        z[..., 8:].copy_(y[..., :8])
        return model.blocks[1](z.mul_(x.clone()).half().float())

    def run(x: Tensor, use: bool) -> Tensor:
        x = x * 1
        y = checkpoint(inner, x, use_reentrant=False) if use else inner(x)
        x += 1  # what a checkpoint has read is written into afterwards
        scores: Tensor = model.head((y + x).mean(1))
        return scores

    x = torch.randn(2, 5, 16)
    for make in (LibraGrad, GenericAttentionRelevance):
        same(make(run).attribute(x, 1, True), make(run).attribute(x, 1, False))
