"""An activation that a product takes apart is found, however its entries are moved in between."""

import random
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import GIM, AttnLRP, LibraGrad, TransformerAttribution
from captum_transformer.errors import UnsupportedOperationError
from tests.rules.by_hand import doubles

FULL_LRP = partial(TransformerAttribution, propagate_to_input=True)
METHODS = {"AttnLRP": AttnLRP, "GIM": GIM, "LibraGrad": LibraGrad, "full LRP": FULL_LRP}
MASK = doubles(3, 6, seed=1) > -0.5
ORDER = torch.tensor([3, 0, 5, 2, 4, 1])
SPLIT = r"in several steps"


def _written(x: Tensor) -> Tensor:
    buffer = torch.empty_like(x)
    buffer[:, :2] = x[:, :2]
    buffer[:, 2:].copy_(x[:, 2:])
    return buffer


def _indexed(x: Tensor) -> Tensor:
    buffer = x.new_zeros(x.shape)
    return buffer.index_copy(1, ORDER, x[:, ORDER])


def _scattered(x: Tensor) -> Tensor:
    places = ORDER.expand(x.shape)
    return torch.zeros_like(x).scatter_(1, places, x.gather(1, places))


def _added(x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(1, ORDER, x[:, ORDER])


def _in_halves(x: Tensor) -> Tensor:
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    first[:, :3], second[:, 3:] = x[:, :3], x[:, 3:]
    return first + second


# What leaves the entries where they are.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda x: torch.where(MASK, x, 0.0),
    "where, constants": lambda x: torch.where(MASK, x, doubles(3, 6, seed=2)),
    "masked_fill": lambda x: x.masked_fill(~MASK, -1e9),
    "infinite": lambda x: torch.where(x.isnan(), -torch.inf, x),
    "masked_scatter": lambda x: torch.zeros_like(x).masked_scatter(MASK, x[MASK]),
    "lerp": lambda x: torch.lerp(torch.zeros_like(x), x, 0.5),
    "addcmul": lambda x: torch.addcmul(torch.zeros_like(x), x, torch.full_like(x, 2.0)),
    "maximum": lambda x: torch.maximum(x, torch.full_like(x, -9.0)),
    "minimum": lambda x: torch.minimum(torch.full_like(x, 9.0), x),
    "written": _written,
    "index_copy": _indexed,
    "scatter": _scattered,
    "index_add": _added,
    "in halves": _in_halves,
    "copied": lambda x: torch.empty_like(x).copy_(x),
    "joined": lambda x: torch.cat([x[:, :1], x[:, 1:]], 1),
    "padded": lambda x: F.pad(x, (1, 2))[:, 1:-2],
    "one by one": lambda x: torch.stack([row * 1.0 for row in x]),
    "scaled": lambda x: x * doubles(6, seed=3) / 2 + 1,
    "negative": lambda x: -x,
    "clone": torch.clone,
}
# What moves them, in both factors.
MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "rolled": lambda x: x.roll(2, -1),
    "flipped": lambda x: x.flip(0, -1),
    "picked": lambda x: x[:, ORDER],
    "index_select": lambda x: x.index_select(-1, ORDER),
    "gathered": lambda x: x.gather(-1, ORDER.expand(x.shape)),
    "reshaped": lambda x: x.reshape(2, -1).mT.reshape(3, 6),
}


def composed(seed: int) -> tuple[str, list[Callable[[Tensor], Tensor]]]:
    """For each of two factors a random way, at whose ends their entries meet again."""
    draw = random.Random(seed)
    ways: list[list[str]] = [[], []]
    for _ in range(draw.randint(1, 3)):
        shared = draw.choice([*MOVED, None])
        for way in ways:
            way += draw.sample([*IN_PLACE], draw.randint(0, 2))
            way += [] if shared is None else [shared]

    def function(way: list[str]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            for step in way:
                x = {**IN_PLACE, **MOVED}[step](x)
            return x

        return run

    return " | ".join(", ".join(way) for way in ways), [function(way) for way in ways]


WAYS = [
    *((name, (way, torch.clone)) for name, way in IN_PLACE.items()),
    *((f"the gate: {name}", (torch.clone, way)) for name, way in IN_PLACE.items()),
    *map(composed, range(40)),
]
# Each method has its turn.
TURNS = [(way, method) for (_, way), method in zip(WAYS, cycle(METHODS), strict=False)]
each_way = pytest.mark.parametrize(("ways", "method"), TURNS, ids=[name for name, _ in WAYS])


def explain(method: str, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    def model(x: Tensor) -> Tensor:
        x = function(*(x @ doubles(6, 6, seed=3 + place) for place in range(3)))[None]
        return F.scaled_dot_product_attention(x, x, x).mean(1)

    return METHODS[method](lambda x: model(x[0])).attribute(doubles(1, 3, 6), target=1)


@each_way
def test_an_activation_that_is_taken_apart_is_refused(ways, method):
    one, other = ways
    with pytest.raises(UnsupportedOperationError, match=SPLIT):
        explain(method, lambda a, b, _: one(a * b) * other(a.sigmoid()))


@each_way
def test_a_gate_of_other_entries_is_a_gate(ways, method):
    one, other = ways
    for factors in (
        lambda a, b, c: (a * b, c.sigmoid()),
        lambda a, b, c: (torch.where(MASK, a * b, 1.0), torch.where(MASK, 1.0, a.sigmoid())),
        lambda a, b, c: (torch.where(MASK, b, a) * c, torch.where(MASK, a, b).sigmoid()),
    ):

        def gated(*signals: Tensor, factors: Any = factors) -> Tensor:
            signal, gate = factors(*signals)
            return one(signal) * other(gate)

        def gate_first(*signals: Tensor, factors: Any = factors) -> Tensor:
            signal, gate = factors(*signals)
            return other(gate) * one(signal)

        found = explain(method, gated)
        assert found.isfinite().all()
        torch.testing.assert_close(found, explain(method, gate_first))


KEEPS = """
infinite,written,index_copy,scatter,index_add,in halves,copied,joined,padded,one by one,clone
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", KEEPS.strip().split(","))
def test_an_activation_in_one_place_stays_one(way, method):
    def gated(activation: Callable[[Tensor], Tensor]) -> Tensor:
        return explain(method, lambda a, b, _: activation(a) * b)

    expected = gated(F.silu)
    for activation in (
        lambda a: a * IN_PLACE[way](a.sigmoid()),
        lambda a: IN_PLACE[way](a) * a.sigmoid(),
        lambda a: (a.roll(1, -1) * IN_PLACE[way](a.sigmoid()).roll(1, -1)).roll(-1, -1),
    ):
        torch.testing.assert_close(gated(activation), expected)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_an_activation_in_places_is_right_or_refused(method):
    """The gate is of the signal itself in some entries, and a constant or another's in others."""
    masked = partial(torch.where, MASK)
    right = {
        "gate": {"AttnLRP", "LibraGrad", "GIM"},
        "signal": {"GIM"},
        "other": {"AttnLRP", "LibraGrad", "full LRP"},
    }
    functions = {
        "gate": lambda a, _, __: a * masked(a.sigmoid(), 1.0),
        "signal": lambda a, _, __: masked(a, 1.0) * a.sigmoid(),
        "other": lambda a, b, _: a * masked(a.sigmoid(), b.sigmoid()),
    }
    apart = {
        "gate": lambda a, _, __: masked(F.silu(a), a),
        "signal": lambda a, _, __: masked(F.silu(a), a.sigmoid()),
        "other": lambda a, b, _: masked(F.silu(a), a * b.sigmoid()),
    }
    for name, function in functions.items():
        if method in right[name]:
            expected = explain(method, apart[name])
            torch.testing.assert_close(explain(method, function), expected)
        else:
            with pytest.raises(UnsupportedOperationError, match="in some entries"):
                explain(method, function)


@pytest.mark.parametrize("method", METHODS)
def test_a_long_recurrence_is_followed_as_fast_as_it_runs(method):
    """What each step is made of is no more than what the step before it was made of, and one."""

    def joined(a: Tensor) -> Tensor:
        steps = [a[:, 0]]
        for place in range(1, 24):
            steps.append(steps[-1] * a[:, place].sigmoid())
        return torch.stack(steps, 1)

    def written(a: Tensor) -> Tensor:
        found = a
        for place in range(1, 24):
            new = found[:, place - 1] * a[:, place].sigmoid()
            found = found.index_copy(1, torch.tensor([place]), new[:, None])
        return found

    def model(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return run(F.scaled_dot_product_attention(x, x, x) @ doubles(4, 4, seed=3)).mean(1)

    x = doubles(2, 24, 4)
    found, expected = (
        METHODS[method](partial(model, run)).attribute(x, target=1) for run in (written, joined)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_gates_of_what_several_experts_have_made_one_of_them_for_no_tokens(method):
    weight = doubles(12, 6, seed=3)

    def gated(x: Tensor) -> Tensor:
        signal, gate = x.chunk(2, -1)
        return signal * gate.sigmoid()

    def experts(x: Tensor) -> Tensor:
        rows = F.scaled_dot_product_attention(x, x, x).flatten(0, 1).split([2, 0, 4])
        return gated(torch.cat([F.linear(some, weight) for some in rows])).view(2, 3, 6).mean(1)

    def one(x: Tensor) -> Tensor:
        return gated(F.linear(F.scaled_dot_product_attention(x, x, x), weight)).mean(1)

    x = doubles(2, 3, 6)
    found, expected = (METHODS[method](model).attribute(x, target=1) for model in (experts, one))
    torch.testing.assert_close(found, expected)
