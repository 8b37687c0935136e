"""Graphs are simplified and called directly, and give the same to the last bit."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from captum_transformer.captured.code import as_function
from captum_transformer.captured.simplified import forms_of, simplify

ATEN = torch.ops.aten


def graph_of(function: Callable[..., Any], *tensors: Tensor) -> GraphModule:
    """Records a function, simplified."""
    context = tracing(TracingContext(FakeTensorMode(allow_non_fake_inputs=True)))
    with context, torch.no_grad():
        module = make_fx(lambda *given: [function(*given)])(*(t.clone() for t in tensors))
    simplify(module, tensors)
    module.graph.lint()
    module.recompile()
    return module


def targets(module: GraphModule) -> list[Any]:
    return [n.target for n in module.graph.nodes if n.op == "call_function"]


def checked(function: Callable[..., Any], *tensors: Tensor) -> list[Any]:
    """Compares a graph with the function, and returns its operations."""
    module = graph_of(function, *tensors)
    run = as_function(module, forms_of(module, tensors))
    given, again, expected = ([t.clone() for t in tensors] for _ in range(3))
    with torch.no_grad():
        result = function(*expected)
        for found in (module(*given), run(*again)):
            assert torch.equal(found[0], result)
            assert found[0].stride() == result.stride()
    assert all(map(torch.equal, given, expected))
    assert all(map(torch.equal, again, expected))
    return targets(module)


x = torch.arange(24.0).reshape(2, 3, 4)

FEWER: dict[str, tuple[Callable[[Tensor], Tensor], list[Any]]] = {
    "transposed twice": (lambda x: x.mT.mT * 2, [ATEN.mul.Tensor]),
    "expanded to its own size": (lambda x: x.expand(2, 3, 4) * 2, [ATEN.mul.Tensor]),
    "all of it": (lambda x: x[:, 0:3] * 2, [ATEN.mul.Tensor]),
    "viewed and viewed back": (lambda x: x.view(6, 4).view(2, 3, 4) * 2, [ATEN.mul.Tensor]),
    "viewed twice": (lambda x: x.view(6, 4).view(24) * 2, [ATEN.view.default, ATEN.mul.Tensor]),
    "permuted twice": (
        lambda x: x.permute(1, 0, 2).permute(0, 2, 1) * 2,
        [ATEN.permute.default, ATEN.mul.Tensor],
    ),
    "the same view twice": (
        lambda x: x.view(6, 4) * x.view(6, 4),
        [ATEN.view.default, ATEN.mul.Tensor],
    ),
    "a view that nothing reads": (lambda x: (x.view(24), x * 2)[1], [ATEN.mul.Tensor]),
    "detached": (lambda x: x.detach() * 2, [ATEN.mul.Tensor]),
}


@pytest.mark.parametrize("name", FEWER)
def test_views_of_what_is_there_are_removed(name: str) -> None:
    function, expected = FEWER[name]
    assert checked(function, x) == expected


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "a part": lambda x: x[:, 1:] * 2,
    "parts of the same size": lambda x: x[:, :1] * x[:, 1:2] + x[:, 2:],
    "the same size in another order": lambda x: x[:, :, :3].mT * 2,
    "numbers as other numbers": lambda x: x.view(torch.int32).view(torch.float32) * 2,
    "conjugated": lambda x: torch.view_as_complex(x.view(2, 3, 2, 2)).conj().real * 2,
    "repeated entries": lambda x: x[:, :, :1].expand(2, 3, 4) * x,
    "a view that can't be had at once": lambda x: x.mT.unsqueeze(0).expand(3, 2, 4, 3) * 2,
}


@pytest.mark.parametrize("name", KEPT)
def test_other_views_stay(name: str) -> None:
    checked(KEPT[name], x)


def test_writes_through_views_are_seen() -> None:
    def function(x: Tensor) -> Tensor:
        whole = x * 1
        whole.view(6, 4).view(24)[3:9].mul_(3)
        whole.mT.mT.add_(1)
        seen = whole.view(24)
        whole[0].zero_()
        return seen.view(2, 3, 4) + whole

    checked(function, x)


def test_writes_into_what_is_given_stay() -> None:
    def function(x: Tensor) -> Tensor:
        x.detach().view(24).view(24)[:5].add_(1)
        return x.view(2, 3, 4) * 2

    checked(function, x)


def test_a_view_is_no_longer_one_if_it_is_resized() -> None:
    def function(x: Tensor) -> Tensor:
        whole = x * 1
        shown = whole.detach()
        shown.transpose_(0, 1)
        return whole + shown.transpose(0, 1)

    checked(function, x)


def test_what_is_returned_is_not_what_was_given() -> None:
    module = graph_of(lambda x: x.detach(), x)
    run = as_function(module, forms_of(module, [x]))
    with torch.no_grad():
        assert run(x)[0] is not x


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((func, [arg for arg in args if not isinstance(arg, (Tensor, list))]))
        return func(*args, **(kwargs or {}))


def test_the_operations_that_run_are_those_of_the_graph() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        a, b = x.unbind(0)
        joined = torch.cat([a, b]).masked_fill(y > 2, 0.5)
        normed = torch.nn.functional.layer_norm(joined, (4,), eps=1e-6)
        zeros = torch.zeros(6, 4, dtype=torch.float64) + normed.to(torch.float64)
        scores = torch.nn.functional.gelu(zeros).masked_fill(y < 1, float("-inf"))
        return scores.softmax(-1).sum((0, 1), keepdim=True).clamp(min=0.1)

    y = torch.arange(4.0).expand(6, 4)
    checked(function, x, y)
    module = graph_of(function, x, y)
    run = as_function(module, forms_of(module, [x, y]))
    seen = []
    for call in (module, run):
        with torch.no_grad(), _Seen() as mode:
            call(x, y)
        seen.append(mode.seen)
    assert seen[0] == seen[1]


def test_results_are_freed_after_their_last_use() -> None:
    module = graph_of(lambda x: ((x * 2).view(24) + 1).sum() * 3, x)
    run = as_function(module, forms_of(module, [x]))
    alive: list[Any] = []

    class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            result = func(*args, **(kwargs or {}))
            if func is ATEN.mul.Tensor and not alive:
                alive.append(weakref.ref(result.untyped_storage()))
                alive.append(result.untyped_storage().data_ptr())
            if func is ATEN.sum.default:
                gc.collect()
                alive.append(alive[0]() is None)
            return result

    with torch.no_grad(), Watching():  # type: ignore[no-untyped-call]
        run(x)
    assert alive[-1]
