"""Writes into what an activation reads or returns: allowed wherever torch allows them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import ConservativeLRP
from captum_transformer.trace.catalogue import ENTRIES
from captum_transformer.trace.kinds import Kind
from tests.rules.by_hand import by_autograd, doubles, relevance, weigh

Function = Callable[[Tensor], Tensor]
# What the functions take besides the signal.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "pow": (3,),
    "float_power": (3,),
    "clamp": (0.4, 0.6),
    "clip": (0.4, 0.6),
    "clamp_min": (0.4,),
    "clamp_max": (0.6,),
    "threshold": (0.5, 0.2),
    "remainder": (0.3,),
    "fmod": (0.3,),
    "mvlgamma": (1,),
    "special_multigammaln": (1,),
    "prelu": (torch.tensor(0.25, dtype=torch.float64),),
}


def points() -> Tensor:
    return doubles(3, 6).sigmoid() / 2 + 0.25


def activation(name: str, *arguments: Any) -> Function | None:
    """A function of torch, by its name in the table."""
    x = points().requires_grad_()
    for holder in (F, torch, torch.Tensor, torch.special):
        function = getattr(holder, name, None) or getattr(
            holder, name.removeprefix("special_"), None
        )
        try:
            result = function(x, *arguments)
        except (TypeError, RuntimeError, ValueError):
            continue
        if isinstance(result, Tensor) and result.requires_grad:
            # The inverse hyperbolic cosine is defined from one on.
            shift = float(result.isnan().any())
            return lambda x: function(x + shift if shift else x, *arguments)
    return None


KINDS = (Kind.ENTRYWISE, Kind.HOMOGENEOUS, Kind.RECIPROCAL)
ALL = {
    name: activation(name, *ARGUMENTS.get(name, ()))
    for name, entry in ENTRIES.items()
    if entry.kind in KINDS
}
ENTRYWISE = {name: function for name, function in ALL.items() if function is not None}
WRITES: dict[str, Function] = {
    "mul_": lambda y: y.mul_(0.5),
    "add_": lambda y: y.add_(1.0),
    "masked_fill_": lambda y: y.masked_fill_(y.detach() > 0.6, 0.0),
    "a view": lambda y: (y[:, :2].mul_(0.3), y)[1],
    "setitem": lambda y: (y.__setitem__((slice(None), 0), 0.5), y)[1],
    "relu_": lambda y: y.relu_(),
}


def test_the_table_holds_the_activations_that_models_use():
    assert {"gelu", "silu", "tanh", "sigmoid", "exp", "rsqrt", "relu", "mish"} <= set(ENTRYWISE)
    assert len(ENTRYWISE) > 90


def programs(function: Function, write: Function) -> dict[str, tuple[Function, Function]]:
    """Programs with a write in place, each beside the same one without."""

    def apart(y: Tensor) -> Tensor:
        return write(y * 1.0)

    def read_then_written(x: Tensor) -> Tensor:
        y = x * 1.0
        out = function(y)
        return out + write(y)

    return {
        "after": (lambda x: write(function(x * 1.0)), lambda x: apart(function(x * 1.0))),
        "before": (lambda x: function(write(x * 1.0)), lambda x: function(apart(x * 1.0))),
        "into the input": (read_then_written, lambda x: function(x * 1.0) + apart(x * 1.0)),
    }


def is_legal(program: Function) -> bool:
    try:
        by_autograd(program, points())
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("name", ENTRYWISE)
def test_what_torch_allows_around_an_activation_works(name):
    legal = 0
    for write in WRITES.values():
        for inplace, out_of_place in programs(ENTRYWISE[name], write).values():
            if is_legal(inplace):
                legal += 1
                (found,) = relevance(lambda x, run=inplace: weigh(run(x)), points())
                (expected,) = relevance(lambda x, run=out_of_place: weigh(run(x)), points())
                torch.testing.assert_close(found, expected, equal_nan=True)
    assert legal >= len(WRITES)


INPLACE = {
    name: getattr(torch.Tensor, f"{name}_")
    for name in ENTRYWISE
    if hasattr(torch.Tensor, f"{name}_") and name not in (*ARGUMENTS, "acosh", "arccosh")
}


@pytest.mark.parametrize("name", INPLACE)
def test_an_activation_in_place_is_the_same_activation(name):
    (found,) = relevance(lambda x: weigh(INPLACE[name](x * 1.0)), points())
    (expected,) = relevance(lambda x: weigh(ENTRYWISE[name](x * 1.0)), points())
    torch.testing.assert_close(found, expected)


NORMS = {
    "layer norm": nn.LayerNorm(6),
    "RMS norm": nn.RMSNorm(6),
    "group norm": nn.GroupNorm(1, 4),
    "instance norm": nn.InstanceNorm1d(4),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_what_torch_allows_after_a_norm_works(norm, write):
    x = doubles(2, 4, 6)
    (found,) = relevance(lambda x: weigh(write(norm.double()(x))), x)
    (expected,) = relevance(lambda x: weigh(write(norm(x) * 1.0)), x)
    torch.testing.assert_close(found, expected)


def test_a_model_may_write_into_a_gated_product():
    x = doubles(3, 6)
    (found,) = relevance(lambda x: weigh((x * x.sigmoid()).mul_(2.0)), x)
    (expected,) = relevance(lambda x: weigh(x * x.sigmoid() * 2.0), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", ["AttnLRP", "ConservativeLRP"])
def test_what_runs_without_gradients_is_a_constant(method):
    def model(x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = F.gelu(x) * x.flip(-1)
        return x * gate

    x = doubles(3, 6)
    if method == "AttnLRP":
        (found,) = relevance(model, x)
    else:
        explain = ConservativeLRP(model, attention_rule=False)
        found = sum(explain.attribute(x, target=target) for target in range(6))
    torch.testing.assert_close(found, model(x))
