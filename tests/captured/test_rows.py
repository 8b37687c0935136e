"""Compiled graphs compute only the rows that are read, and that are not zero."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from captum_transformer import AttnLRP, GenericAttentionRelevance, TransformerAttribution
from captum_transformer.captured.pure import pure_graph
from captum_transformer.captured.regions import compiled_in_parts
from captum_transformer.captured.rows import with_fewer_rows
from tests.captured.models import Classifier, classifier, values

SAMPLES, TOKENS, WIDTH = 2, 7, 8


def pure(function: Callable[..., Any], *tensors: Tensor) -> GraphModule:
    with torch.no_grad():
        return pure_graph(make_fx(function)(*tensors), tensors, select_decomp_table())


def products(graph: GraphModule, *tensors: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(*tensors)
    return counter.get_total_flops()


def compared(function: Callable[..., Any], *tensors: Tensor) -> tuple[int, int]:
    """The products of a graph and of the one with fewer rows, which gives the same."""
    graph = pure(function, *tensors)
    fewer = with_fewer_rows(graph)
    with torch.no_grad():
        for found, expected in zip(fewer(*tensors), graph(*tensors), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    return products(graph, *tensors), products(fewer, *tensors)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """A function, and the gradient of its sum."""

    def run(x: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            found = function(x)
            (gradient,) = torch.autograd.grad(found.sum(), x)
        return [found.detach(), gradient]

    return run


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Random:
    """A random function of tokens, made of operations on single rows and on all of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        by_rows = [
            self.linear, self.normed, self.residual, self.mlp, self.by_heads, self.turned,
            self.flat, self.gated, self.kept, self.scaled, self.features, self.divided,
        ]  # fmt: skip
        mixing = [
            self.attention, self.written_attention, self.parts, self.shifted, self.reversed,
            self.over_tokens, self.one_for_all, self.wrong_view, self.padded,
        ]  # fmt: skip
        kinds = [
            self.random.choice(by_rows if self.random.random() < 0.7 else mixing)
            for _ in range(self.random.randint(2, 7))
        ]
        self.steps = [kind() for kind in kinds]
        self.pick = self.picked()

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.pick(x)

    def weight(self, out: int = WIDTH, width: int = WIDTH) -> Tensor:
        return torch.randn(out, width, dtype=torch.float64, generator=self.torch) / width**0.5

    def linear(self) -> Any:
        weight, bias = self.weight(), self.weight()[0]
        return lambda x: F.linear(x, weight, bias)

    def normed(self) -> Any:
        weight, bias = self.weight()[0], self.weight()[0]
        return lambda x: F.layer_norm(x, (WIDTH,), weight, bias)

    def residual(self) -> Any:
        inner = self.mlp()
        return lambda x: x + inner(x)

    def mlp(self) -> Any:
        up, down = self.weight(2 * WIDTH), self.weight(WIDTH, 2 * WIDTH)
        return lambda x: F.linear(F.gelu(F.linear(x, up)), down)

    def by_heads(self) -> Any:
        return lambda x: joined(heads(x).tanh() * 2)

    def turned(self) -> Any:
        return lambda x: (x.mT * 0.5).relu().mT.contiguous()

    def flat(self) -> Any:
        weight = self.weight()
        return lambda x: (x.reshape(-1, WIDTH) @ weight).view(x.shape)

    def gated(self) -> Any:
        weight = self.weight(2 * WIDTH)
        return lambda x: F.glu(F.linear(x, weight))

    def kept(self) -> Any:
        return lambda x: torch.where(x > 0, x, 0.1 * x)

    def scaled(self) -> Any:
        return lambda x: x * x.square().mean(-1, keepdim=True).add(1e-3).rsqrt()

    def features(self) -> Any:
        return lambda x: torch.cat([x[..., 3:].sin(), x[..., :3].cos()], -1)

    def divided(self) -> Any:
        return lambda x: x.softmax(-1) / (x.abs() + 1)

    def attention(self) -> Any:
        weight, causal = self.weight(3 * WIDTH), self.random.random() < 0.3

        def run(x: Tensor) -> Tensor:
            q, k, v = F.linear(x, weight).chunk(3, -1)
            found = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=causal)
            return joined(found)

        return run

    def written_attention(self) -> Any:
        weight, mask = self.weight(3 * WIDTH), torch.arange(TOKENS) < TOKENS - 1

        def run(x: Tensor) -> Tensor:
            q, k, v = F.linear(x, weight).view(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
            scores = (q @ k.mT).masked_fill(~mask, float("-inf"))
            return joined(scores.softmax(-1) @ v) + x

        return run

    def parts(self) -> Any:
        place = self.random.randint(1, TOKENS - 1)
        return lambda x: torch.cat([x[:, place:] * 2, x[:, :place].exp()], 1)

    def shifted(self) -> Any:
        return lambda x: x.roll(1, 1) + x

    def reversed(self) -> Any:
        return lambda x: x.flip(1) * x

    def over_tokens(self) -> Any:
        return lambda x: x.softmax(1) + x.cumsum(1)

    def one_for_all(self) -> Any:
        return lambda x: x + x[:, :1] * x.mean(1, keepdim=True)

    def wrong_view(self) -> Any:
        return lambda x: x.reshape(x.shape[0], WIDTH, TOKENS).tanh().reshape(x.shape)

    def padded(self) -> Any:
        return lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1] + x

    def picked(self) -> Callable[[Tensor], Tensor]:
        dim = self.random.choice([0, 1, 1, 1, 1, 2])
        place = self.random.randrange((SAMPLES, TOKENS, WIDTH)[dim])
        head = self.weight(3)
        return self.random.choice([
            lambda x: x.select(dim, place),
            lambda x: x.narrow(dim, place, 1) * 2,
            lambda x: F.linear(F.layer_norm(x, (WIDTH,)), head)[:, place % TOKENS],
            lambda x: x[:, 0] * 2 + x[:, 1].sin(),
            lambda x: x[:, -2:].mean(1),
            lambda x: x[torch.arange(SAMPLES), torch.arange(SAMPLES)],
        ])  # fmt: skip


@pytest.mark.parametrize(
    "seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 20))]
)
def test_the_same_from_no_more_products(seed: int) -> None:
    before, after = compared(with_gradient(Random(seed)), some(SAMPLES, TOKENS, WIDTH))
    assert after <= before


class Rows(nn.Module):
    """Layers that treat tokens one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


PICKS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "the first": (lambda x: x[:, 0], 1),
    "the last": (lambda x: x[:, -1], 1),
    "two": (lambda x: x[:, 0] + x[:, 1] * 2, 2),
    "a slice": (lambda x: x[:, 2:4], 2),
    "of one sample": (lambda x: x[:1, 3], 0.5),
    "taken apart": (lambda x: x.unbind(1)[2], 1),
    "split": (lambda x: x.split([1, 5, 1], 1)[2], 1),
}


@pytest.mark.parametrize("name", PICKS)
def test_layers_run_for_the_rows_that_are_picked(name: str) -> None:
    pick, rows = PICKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Rows(), Rows()).double().requires_grad_(False)
    before, after = compared(with_gradient(lambda x: pick(model(x))), some(SAMPLES, TOKENS, WIDTH))
    assert after * TOKENS == before * rows


def test_queries_that_no_one_reads_do_not_attend() -> None:
    weight = some(3 * WIDTH, WIDTH)

    def attended(x: Tensor) -> Tensor:
        q, k, v = map(heads, F.linear(x, weight).chunk(3, -1))
        return joined(F.scaled_dot_product_attention(q, k, v))[:, 0]

    before, after = compared(lambda x: [attended(x)], some(SAMPLES, TOKENS, WIDTH))
    size = 2 * SAMPLES * TOKENS * WIDTH
    # The counter knows of the product with the queries' weights only.
    assert before - after == size // TOKENS * (TOKENS - 1) * WIDTH


SQUARE = some(WIDTH, WIDTH)
UNCHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "a mean": lambda x: (x @ SQUARE).mean(1),
    "most tokens": lambda x: (x @ SQUARE)[:, 1:].mean(1),
    "an order that depends on numbers": lambda x: (x @ SQUARE).sort(1)[0][:, 0],
    "a sum over tokens": lambda x: (x @ SQUARE).cumsum(1)[:, -1],
    "a view that cuts tokens": lambda x: (x @ SQUARE).reshape(-1, WIDTH, TOKENS)[:, 0],
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_graph_that_reads_all_rows_is_left_as_it_is(name: str) -> None:
    graph = pure(with_gradient(UNCHANGED[name]), some(SAMPLES, TOKENS, WIDTH))
    assert with_fewer_rows(graph) is graph


def test_what_is_written_into_arguments_is_written() -> None:
    weight = some(WIDTH, WIDTH)

    def run(x: Tensor, seen: Tensor) -> list[Tensor]:
        found = F.linear(x, weight)
        seen.add_(found[:, 1])
        return [found[:, 0]]

    x, seen, other = some(SAMPLES, TOKENS, WIDTH), some(SAMPLES, WIDTH), some(SAMPLES, WIDTH)
    fewer = with_fewer_rows(pure(run, x, seen.clone()))
    found = fewer(x, seen)
    torch.testing.assert_close(found, run(x, other))
    torch.testing.assert_close(seen, other)


def test_operations_that_are_not_known_read_what_was_at_a_place_in_memory() -> None:
    def run(x: Tensor) -> list[Tensor]:
        made = torch.zeros(TOKENS, SAMPLES, WIDTH, dtype=x.dtype).transpose(0, 1).clone()
        made[:, :1] = (x @ SQUARE)[:, :1]
        made = made.sin().sin()
        return [made.as_strided((TOKENS, SAMPLES, WIDTH), (SAMPLES * WIDTH, WIDTH, 1)) @ SQUARE]

    before, after = compared(run, some(SAMPLES, TOKENS, WIDTH))
    assert after < before


def test_rows_of_zeros_hide_what_they_are_multiplied_by() -> None:
    """Zero times infinity is NaN, but not where zero is known before."""
    graph = pure(with_gradient(lambda x: (x.exp() @ SQUARE)[:, 0]), some(1, 3, WIDTH))
    x = torch.zeros(1, 3, WIDTH, dtype=torch.float64)
    x[:, 1] = torch.inf
    with torch.no_grad():
        (_, plain), (_, fewer) = graph(x), with_fewer_rows(graph)(x)
    assert plain[:, 1].isnan().all()
    assert (fewer[:, 1:] == 0).all()
    torch.testing.assert_close(plain[:, 0], fewer[:, 0])


class OfFirst(Classifier):
    """Reads the first token."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


@pytest.mark.parametrize("method", [AttnLRP, GenericAttentionRelevance, TransformerAttribution])
def test_explanations_of_a_class_token_need_fewer_products(method: Any) -> None:
    model = OfFirst()
    model.load_state_dict(classifier().state_dict())
    model = model.double().eval()
    captured = method(model).capture(values().double(), 1)
    (graph,) = captured._graphs.values()
    given = [*graph.example.example(), *graph.guard.state()]
    before = products(graph.recorded.graph, *given)
    with torch.no_grad():
        whole = compiled_in_parts(graph.recorded.graph, given, lambda part, _: part)
    assert products(whole, *given) < before
    graph._run = whole
    expected = method(model).attribute(values(1).double(), [2, 0, 4])
    found = captured(values(1).double(), [2, 0, 4])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))
