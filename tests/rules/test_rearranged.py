"""Relevance of moved entries is moved back, as by autograd, without running autograd."""

import pytest
import torch
import torch.nn.functional as F

from captum_transformer.rules import rearranged as module
from captum_transformer.rules.flow.terms import has_constants
from captum_transformer.rules.propagate import transposed
from captum_transformer.rules.rearranged import rearranged
from captum_transformer.trace.mode import Trace

WITHOUT_AUTOGRAD = {
    "reshape": lambda x: x.reshape(6, 4),
    "permute": lambda x: x.permute(2, 0, 1),
    "unbind": lambda x: x.unbind(1),
    "split": lambda x: x.split([1, 3], -1),
    "chunk": lambda x: x.chunk(2, -1),
    "select": lambda x: x[:, 0],
    "slice": lambda x: x[..., 1::2],
    "diagonal": lambda x: x.diagonal(0, 1, 2),
    "pad of nothing": lambda x: F.pad(x, (0, 0, 0, 0)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=3.0),
    "pad that crops": lambda x: F.pad(x, (-1, 1)),
}
BY_AUTOGRAD = {
    "overlapping windows": lambda x: x.unfold(-1, 2, 1),
    "expand": lambda x: x[:, :1].expand(2, 3, 4),
    "reflecting pad": lambda x: F.pad(x, (1, 1), mode="reflect"),
    "roll": lambda x: x.roll((1, 2), (1, 2)),
    "roll of all entries": lambda x: x.roll(5),
    "flip": lambda x: x.flip(-1),
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "where": lambda x: torch.where(torch.arange(4) > 1, x, 5.0),
}


def _traced(function):
    x = torch.randn(2, 3, 4).requires_grad_().clone()
    with Trace() as trace:
        trace.enter_input(x)
        found = function(x)
    outputs = found if isinstance(found, tuple) else (found,)
    return x, trace.tape.operations[-1], outputs


@pytest.mark.parametrize("name", [*WITHOUT_AUTOGRAD, *BY_AUTOGRAD])
def test_shares_go_back_as_the_gradient_does(name):
    _, operation, outputs = _traced({**WITHOUT_AUTOGRAD, **BY_AUTOGRAD}[name])
    ((_, value),) = operation.traced()
    given = [torch.randn(output.shape) for output in outputs]
    for cotangents in (given, [given[0], *[None] * (len(given) - 1)]):
        (expected,) = transposed(operation, [torch.randn(value.shape)], cotangents)
        (found,) = rearranged(operation, cotangents)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dims", [(-1,), (0,), (-1, 0)])
@pytest.mark.parametrize("name", [*WITHOUT_AUTOGRAD, *BY_AUTOGRAD])
def test_shares_that_are_spread_evenly_go_back_in_the_same_way(name, dims):
    _, operation, outputs = _traced({**WITHOUT_AUTOGRAD, **BY_AUTOGRAD}[name])
    given = [torch.randn(output.shape) for output in outputs]
    for dim in dims:
        given = [c.narrow(dim, 0, 1).expand(c.shape) for c in given]
    (expected,) = rearranged(
        operation, [c.clone(memory_format=torch.contiguous_format) for c in given]
    )
    (found,) = rearranged(operation, given)
    assert torch.equal(found, expected)


def test_relevance_spread_over_features_is_not_copied():
    for function in (lambda x: x.transpose(0, 1), lambda x: x.roll(1, 1), lambda x: x.flip(0)):
        _, operation, (output,) = _traced(function)
        (found,) = rearranged(operation, [torch.randn(*output.shape[:2], 1).expand(output.shape)])
        assert found.stride(-1) == 0


@pytest.mark.parametrize("name", WITHOUT_AUTOGRAD)
def test_views_and_pads_need_no_autograd(name, monkeypatch):
    _, operation, outputs = _traced(WITHOUT_AUTOGRAD[name])

    def refuse(*_):
        raise AssertionError("autograd was asked")

    monkeypatch.setattr(module, "transposed", refuse)
    rearranged(operation, [torch.randn(output.shape) for output in outputs])


@pytest.mark.parametrize("name", [*WITHOUT_AUTOGRAD, *BY_AUTOGRAD])
def test_a_share_that_has_a_derivative_keeps_it(name):
    _, operation, outputs = _traced({**WITHOUT_AUTOGRAD, **BY_AUTOGRAD}[name])
    given = [torch.randn(output.shape, requires_grad=True) for output in outputs]
    (found,) = rearranged(operation, given)
    slopes = torch.autograd.grad(found.sum(), given)
    ones = [torch.ones_like(cotangent) for cotangent in given]
    # Each entry of a share goes to one entry, and those of constants to none.
    assert all(
        ((slope == one) | (slope == 0)).all() for slope, one in zip(slopes, ones, strict=True)
    )
    assert any(slope.any() for slope in slopes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("roll", False),
        ("flip", False),
        ("rot90", False),
        ("unbind", False),
        ("pad of nothing", False),
        ("pad", True),
        ("where", True),
    ],
)
def test_operations_that_only_order_entries_have_no_constants(name, expected):
    _, operation, _ = _traced({**WITHOUT_AUTOGRAD, **BY_AUTOGRAD}[name])
    assert has_constants(operation) is expected
