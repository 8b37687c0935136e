"""Compiled models are explained as what they were compiled from, and stay compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import ConservativeLRP, describe
from captum_transformer.calling.uncompiled import uncompiled
from captum_transformer.errors import InvalidLayerError
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import images, timm_vit


class Backend:
    """Compiles to what was captured, and counts."""

    def __init__(self) -> None:
        self.graphs = 0
        self.runs = 0

    def __call__(self, module: Any, _: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return module.forward(*args)

        return run


@pytest.fixture
def backend() -> Iterator[Backend]:
    torch.compiler.reset()
    yield Backend()
    torch.compiler.reset()


def whole(model: nn.Module, backend: Backend) -> Any:
    return torch.compile(model, backend=backend)


def in_place(model: nn.Module, backend: Backend) -> Any:
    model.compile(backend=backend)
    return model


def blocks(model: Any, backend: Backend) -> Any:
    for block in model.blocks:
        block.compile(backend=backend)
    return model


def function(model: nn.Module, backend: Backend) -> Any:
    def run(x: Tensor) -> Any:
        return model(x)

    return torch.compile(run, backend=backend)


@pytest.mark.filterwarnings("ignore:.*CUDA")
@pytest.mark.parametrize("compiled", [whole, in_place, blocks, function])
def test_compiled_models(compiled: Callable[..., Any], backend: Backend) -> None:
    methods = ("TransformerAttribution", "GenericAttentionRelevance", "ConservativeLRP", "AttnLRP")
    expected = {name: METHODS[name](timm_vit()).attribute(images(), 1) for name in methods}

    model = compiled(timm_vit(), backend)
    scores = model(images()).detach()
    graphs, runs = backend.graphs, backend.runs
    assert graphs
    for name, relevance in expected.items():
        assert_close(METHODS[name](model).attribute(images(), 1), relevance)
    assert (backend.graphs, backend.runs) == (graphs, runs)

    assert_close(model(images()).detach(), scores)
    assert backend.graphs == graphs
    assert backend.runs == 2 * runs


class CallsCompiled(nn.Module):
    """A model that calls a function which was compiled by itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.vit = timm_vit()
        self.call = [function]

    def forward(self, x: Tensor) -> Any:
        return self.vit(self.call[0](x))


def test_functions_compiled_by_themselves(backend: Backend) -> None:
    def doubled(x: Tensor) -> Tensor:
        return nn.functional.gelu(2 * x)

    expected = METHODS["AttnLRP"](CallsCompiled(doubled)).attribute(images(), 1)
    model = CallsCompiled(torch.compile(doubled, backend=backend))
    assert_close(METHODS["AttnLRP"](model).attribute(images(), 1), expected)
    assert backend.graphs == 0

    model(images())
    assert backend.graphs == backend.runs == 1


def test_overlapping_explanations_restore_the_compiler(backend: Backend) -> None:
    """As of two threads: the first to come goes first."""
    compiled = torch.compile(torch.sin, backend=backend)
    first, second = uncompiled(), uncompiled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    compiled(torch.ones(2))
    assert backend.runs == 0
    second.__exit__(None, None, None)
    compiled(torch.ones(2))
    assert backend.runs == 1


def wrapped_blocks(model: Any, backend: Backend) -> Any:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend=backend)
    return model


def all_of_it(model: Any, backend: Backend) -> Any:
    return torch.compile(wrapped_blocks(model, backend), backend=backend)


@pytest.mark.filterwarnings("ignore:.*CUDA")
@pytest.mark.parametrize("compiled", [whole, in_place, blocks, wrapped_blocks, all_of_it])
def test_names_are_those_from_before_compiling(
    compiled: Callable[..., Any], backend: Backend
) -> None:
    layers = ["blocks.0", "blocks.1.mlp", ("blocks.0.attn.proj", 0)]
    x, plain = images(), timm_vit()
    expected = ConservativeLRP(plain).attribute_layers(x, layers, target=1)
    seen = [call.module for call in describe(plain, x).attention]
    model = compiled(timm_vit(), backend)
    of_compiled = [name for name, _ in model.named_modules() if name.endswith("blocks.1.mlp")]
    of_compiled += [name for name, _ in model.named_modules() if name.endswith("mod.mlp")][-1:]
    for mlp in ("blocks.1.mlp", *of_compiled):
        layers[1] = mlp
        found = ConservativeLRP(model).attribute_layers(x, layers, target=1)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert [call.module for call in describe(model, x).attention] == seen
    with pytest.raises(InvalidLayerError, match=r"no module 'blocks\.7'.*There is: 'blocks\.\d'"):
        ConservativeLRP(model).attribute_layers(x, ["blocks.7"], target=1)
