"""Graphs are compiled in parts, equal ones once."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from captum_transformer import AttnLRP, TransformerAttribution
from captum_transformer.captured.regions import compiled_in_parts
from tests.captured.models import Block, Classifier, classifier, values


class Uncompiled:
    """Keeps what it is to compile."""

    def __init__(self) -> None:
        self.parts: list[GraphModule] = []

    def __call__(self, graph: GraphModule, tensors: Sequence[Tensor]) -> Any:
        inputs = graph.graph.find_nodes(op="placeholder")
        assert len(inputs) == len(tensors)
        self.parts.append(graph)
        return graph


def deep(depth: int) -> Classifier:
    model = classifier()
    model.blocks = nn.ModuleList(Block() for _ in range(depth))
    return model.eval()


def in_parts(captured: Any) -> tuple[int, list[str]]:
    """Lets a captured call run in parts: how many there are, and which is called when."""
    (graph,) = captured._graphs.values()
    compiler = Uncompiled()
    tensors = [*graph.example.example(), *graph.guard.state()]
    with torch.no_grad():
        whole = compiled_in_parts(graph.recorded.graph, tensors, compiler)
    graph._run = whole
    return len(compiler.parts), [n.target for n in whole.graph.nodes if n.op == "call_module"]


@pytest.mark.parametrize("method", [AttnLRP, TransformerAttribution])
def test_layers_are_compiled_once_however_many_there_are(method: Any) -> None:
    counts = []
    for depth in (5, 7):
        model = deep(depth).double()  # in single precision, its maps are right to a few digits
        explainer = method(model)
        captured = explainer.capture(values().double(), 1)
        parts, calls = in_parts(captured)
        assert max(map(calls.count, calls)) >= depth - 3
        counts.append(parts)
        with torch.no_grad():
            model.head.weight.mul_(2)
        expected = explainer.attribute(values(1).double(), [2, 0, 4])
        found = captured(values(1).double(), [2, 0, 4])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))
    assert counts[0] == counts[1]


def layer(x: Tensor, skipped: int, factor: float = 1.5) -> Tensor:
    """Operations that are the same in each layer, but for what the last ones read."""
    made = [x]
    for _ in range(40):
        made.append(made[-1].sin())
    return made[-1] + made[skipped] * factor


@pytest.mark.parametrize(
    ("layers", "parts", "calls"),
    [([(1,)] * 6, 1, 6), ([(1,), (2,)] * 3, 2, 6), ([(1, 0.5), (1, 2.5)] * 3, 1, 3)],
    ids=["equal", "other connections", "pairs of other numbers"],
)
def test_only_equal_parts_are_one(layers: Any, parts: int, calls: int) -> None:
    def run(x: Tensor) -> list[Tensor]:
        for given in layers:
            x = layer(x, *given)
        return [x]

    x, compiler = torch.full((3,), 0.5), Uncompiled()
    whole = compiled_in_parts(make_fx(run)(x), [x], compiler)
    torch.testing.assert_close(whole(x), run(x))
    assert len(compiler.parts) == parts
    assert sum(node.op == "call_module" for node in whole.graph.nodes) == calls


def test_what_is_written_into_the_state_is_written() -> None:
    def count(x: Tensor, seen: Tensor) -> list[Tensor]:
        seen.add_(1)
        return [layer(x, 1) * seen]

    x, seen = torch.full((3,), 0.5), torch.zeros(1)
    graph = make_fx(count)(x, seen.clone())
    whole = compiled_in_parts(graph, [x, seen.clone()], Uncompiled())
    for number in (1, 2):
        expected = layer(x, 1) * number
        torch.testing.assert_close(whole(x, seen)[0], expected)
        assert seen.item() == number


def test_results_written_into_others_keep_the_order_of_these() -> None:
    def run(x: Tensor) -> list[Tensor]:
        turned, into = x.mT, torch.zeros(2, 4, 3)
        torch.mul(turned, turned, out=into)
        return [into.view(8, 3) + 1]

    x = torch.arange(24.0).reshape(2, 3, 4)
    whole = compiled_in_parts(make_fx(run)(x), [x], Uncompiled())
    torch.testing.assert_close(whole(x), run(x))
