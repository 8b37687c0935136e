"""Graphs are compiled in parts, equal ones once."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from captum_transformer import AttnLRP, GenericAttentionRelevance, TransformerAttribution
from captum_transformer.captured.regions import compiled_in_parts
from tests.attr.generators import bart, t5
from tests.attr.subjects import assert_close, subject
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
@pytest.mark.slow
def test_layers_are_compiled_once_however_many_there_are(method: Any) -> None:
    counts = []
    for depth in (5, 6):
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


def cat_with_an_empty_one(x: Tensor) -> Tensor:
    return torch.cat([torch.empty(0), x.mT], -1)


def written_by_out(x: Tensor) -> Tensor:
    into = torch.zeros(2, 4, 3)
    torch.mul(x.mT, x.mT, out=into)
    return into


def written_by_an_operation_that_resizes(x: Tensor) -> Tensor:
    into = torch.empty(0)
    torch.add(x, x, out=into)
    return into


def masked(x: Tensor) -> Tensor:
    base = torch.zeros(2, 3, 4)
    base.mT.masked_fill_(x.mT > 1, 3.0)
    return base


def added_at_places(x: Tensor) -> Tensor:
    base = x.clone()
    base.transpose(0, 2).index_add_(0, torch.tensor([3, 1]), torch.ones(2, 3, 2))
    return base


def written_into_a_part(x: Tensor) -> Tensor:
    base = torch.zeros(2, 4, 6)
    base[..., ::2].add_(x.mT)
    return base


@pytest.mark.parametrize(
    "make",
    [
        cat_with_an_empty_one,
        written_by_out,
        written_by_an_operation_that_resizes,
        masked,
        added_at_places,
        written_into_a_part,
    ],
)
def test_tensors_have_the_order_in_memory_in_which_they_were_recorded(make: Any) -> None:
    def run(x: Tensor) -> list[Tensor]:
        made = make(x)
        in_memory = made.as_strided((24,), (1,))
        return [made + 1, in_memory + 1]

    x = torch.arange(24.0).reshape(2, 3, 4)
    whole = compiled_in_parts(make_fx(run)(x), [x], Uncompiled())
    for found, expected in zip(whole(x), run(x), strict=True):
        assert torch.equal(found, expected)


def ordered(seed: int) -> Callable[[Tensor], list[Tensor]]:
    """Random operations that change the order in memory, or that depend on it."""

    def run(x: Tensor) -> list[Tensor]:
        chance, made = random.Random(seed), [x]
        for _ in range(10):
            x, one, other = made[-1], *chance.sample(range(3), 2)
            kind = chance.randrange(9)
            if kind == 0:
                x = x.transpose(one, other)
            elif kind == 1:
                x = torch.cat([x.new_empty(0), x.transpose(one, other)], chance.randrange(3))
            elif kind == 2:
                x = x.transpose(one, other).contiguous()
            elif kind == 3:
                base = torch.ones_like(x.transpose(one, other))
                base.transpose(one, other).masked_fill_(x > 0, 2.0)
                x = base.transpose(one, other) * x
            elif kind == 4:
                into = torch.zeros(x.shape, dtype=x.dtype)
                x = torch.add(x, 1, out=into)
            elif kind == 5:
                x = x.as_strided((2, 3, 4), (12, 4, 1)).sin()
            elif kind == 6:
                x = x.reshape(-1).view(2, 3, 4).sin()
            elif kind == 7:
                x = x.transpose(one, other).clone()
                x[:, :1].mul_(x[:, 1:2])
            else:
                x = x.clone().transpose(one, other).cos()
            made.append(x)
        return [one * 1 for one in made]

    return run


@pytest.mark.parametrize("seed", range(12))
def test_random_operations_find_the_order_in_memory_that_they_depend_on(seed: int) -> None:
    x, run = torch.arange(24.0).reshape(2, 3, 4) - 11, ordered(seed)
    whole = compiled_in_parts(make_fx(run)(x), [x], Uncompiled())
    torch.testing.assert_close(whole(x), run(x))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("GPT-2", GenericAttentionRelevance),  # a cache starts with an empty tensor
        ("T5", AttnLRP),
        ("GPT-2", TransformerAttribution),
        ("T5", TransformerAttribution),
        ("BART", GenericAttentionRelevance),
    ],
)
@pytest.mark.slow
def test_models_with_caches(name: str, method: Any) -> None:
    explained = subject(name) if name == "GPT-2" else {"T5": t5, "BART": bart}[name]("sdpa")
    explainer = method(explained.model)
    given = explained.inputs, explained.target
    captured = explainer.capture(*given, additional_forward_kwargs=explained.named)
    in_parts(captured)
    found = captured(*given, additional_forward_kwargs=explained.named)
    expected = explainer.attribute(*given, additional_forward_kwargs=explained.named)
    assert_close(found, expected)
