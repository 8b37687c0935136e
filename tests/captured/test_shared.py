"""Results that a graph computes twice are kept, but never more memory than before."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from captum_transformer.captured.code import as_function
from captum_transformer.captured.shared import share
from captum_transformer.captured.simplified import forms_of

ATEN = torch.ops.aten
x = torch.rand(8, 8)


def shared(function: Callable[[Tensor], Tensor], x: Tensor) -> GraphModule:
    """Returns the graph of a function, which gives the same to the last bit."""
    context = tracing(TracingContext(FakeTensorMode(allow_non_fake_inputs=True)))
    with context, torch.no_grad():
        module = make_fx(lambda given: [function(given)])(x.clone())
        share(module.graph)
        module.graph.lint()
        module.recompile()
        expected = function(given := x.clone())
        (found,) = module(again := x.clone())
    assert torch.equal(found, expected)
    assert torch.equal(given, again)
    return module


def count(module: GraphModule, *targets: object) -> int:
    return sum(node.target in targets for node in module.graph.nodes)


def _large(x: Tensor) -> Tensor:
    return torch.cat([x] * 100).sum() * x


def test_what_is_known_is_not_computed_again() -> None:
    def function(x: Tensor) -> Tensor:
        whole = _large(x)
        maps = (x @ x.mT).softmax(-1)
        first = maps @ whole
        return (x @ x.mT).softmax(-1) * first

    module = shared(function, x)
    assert count(module, ATEN._softmax.default) == 1
    assert count(module, ATEN.mm.default) == 2


def test_what_is_needed_for_it_is_not_kept() -> None:
    def function(x: Tensor) -> Tensor:
        most = torch.cat([x] * 200).sum()
        parts = torch.layer_norm(_large(x), (8,)).chunk(2, 1)
        first = parts[0] @ parts[1].mT
        again = torch.layer_norm(_large(x), (8,)).chunk(2, 1)
        return most * first * (again[1] @ again[0].mT)

    module = shared(function, x)
    assert count(module, ATEN.native_layer_norm.default) == 1
    assert count(module, ATEN.cat.default) == 2


def test_the_peak_of_memory_stays() -> None:
    def function(x: Tensor) -> Tensor:
        first = (torch.cat([x] * 60) * 2).sum()
        most = torch.cat([x] * 100).sum()
        return (torch.cat([x] * 60) * 2).sum(0) + first + most

    module = shared(function, x)
    assert count(module, ATEN.mul.Tensor) == 2
    assert count(module, ATEN.cat.default) == 3


def _peak(function: Callable[[Tensor], object], x: Tensor) -> int:
    """Counts the bytes of all memory that exists at once."""
    alive: dict[int, tuple[StorageWeakRef, int]] = {}
    peak = 0

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
        ) -> object:
            nonlocal peak
            del types
            result = func(*args, **(kwargs or {}))  # type: ignore[operator]
            for tensor in tree_leaves(result):
                storage = tensor.untyped_storage()
                alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
            for key in [key for key, (ref, _) in alive.items() if ref.expired()]:
                del alive[key]
            peak = max(peak, sum(size for _, size in alive.values()))
            return result

    with torch.no_grad(), Counting():  # type: ignore[no-untyped-call]
        function(x)
    return peak


@pytest.mark.parametrize("size", [1, 20, 40, 60, 80, 120])
def test_a_call_takes_no_more_memory(size: int) -> None:
    def function(x: Tensor) -> Tensor:
        first = (torch.cat([x] * size) * 2).sum()
        most = (torch.cat([x] * 100) + 1).sum()
        return (torch.cat([x] * size) * 2).sum(0) + first + most

    def run(module: GraphModule) -> Callable[[Tensor], object]:
        return as_function(module, forms_of(module, [x]))

    context = tracing(TracingContext(FakeTensorMode(allow_non_fake_inputs=True)))
    with context, torch.no_grad():
        plain = make_fx(lambda given: [function(given)])(x)
    assert _peak(run(shared(function, x)), x) <= _peak(run(plain), x)


KEPT: dict[str, tuple[Callable[[Tensor], Tensor], object]] = {
    "what is written into": (
        lambda x: _large(x) + x.exp().add_(1) + x.exp().view(-1).mul_(2).view(8, 8),
        ATEN.exp.default,
    ),
    "what is made of what is written into": (
        lambda x: _large(x) + x.exp() + x.add_(1).exp(),
        ATEN.exp.default,
    ),
    "one of several results that is written into": (
        lambda x: _large(x) + torch.var_mean(x, 0)[1] + torch.var_mean(x, 0)[1].add_(1),
        ATEN.var_mean.correction,
    ),
    "other arguments": (lambda x: _large(x) + x.sum(0) + x.sum(1), ATEN.sum.dim_IntList),
    "numbers of another type": (lambda x: _large(x) + x.mul(True) + x.mul(1), ATEN.mul.Tensor),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_may_differ_is_computed_twice(name: str) -> None:
    function, target = KEPT[name]
    assert count(shared(function, x), target) >= 2


def test_random_numbers_are_drawn_twice() -> None:
    context = tracing(TracingContext(FakeTensorMode(allow_non_fake_inputs=True)))
    with context, torch.no_grad():
        module = make_fx(lambda x: [_large(x) + x.bernoulli() + x.bernoulli()])(x)
    share(module.graph)
    assert count(module, ATEN.bernoulli.default) == 2
