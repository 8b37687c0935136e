"""Objects that are replaced by others of the same form are read anew, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from captum_transformer import AttnLRP
from captum_transformer.errors import CaptureError, CaptureMismatchError
from tests.captured.models import Block, assert_never_stale, classifier, values


class Quantised(Tensor):
    """A weight that holds whole numbers, or such a weight, and their scale."""

    @staticmethod
    def __new__(cls, inner: Tensor, scale: Tensor) -> "Quantised":
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=scale.dtype)

    def __init__(self, inner: Tensor, scale: Tensor) -> None:
        self.inner, self.scale = inner, scale

    def dequantize(self) -> Tensor:
        inner: Any = self.inner
        held = inner.dequantize() if isinstance(inner, Quantised) else inner.to(self.scale.dtype)
        return held * self.scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner, args[0].scale)
        plain = pytree.tree_map_only(cls, lambda one: one.dequantize(), (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def quantised(seed: int, *, twice: bool = False) -> nn.Parameter:
    whole = torch.randint(-9, 9, (5, 16), generator=torch.Generator().manual_seed(seed))
    held = Quantised(whole.to(torch.int8), torch.tensor(0.1 * (seed + 1)))
    return nn.Parameter(Quantised(held, torch.tensor(2.0)) if twice else held, requires_grad=False)


def whole_numbers(weight: Any) -> Tensor:
    while isinstance(weight, Quantised):
        weight = weight.inner
    return weight


@pytest.mark.parametrize("twice", [False, True])
def test_what_a_weight_holds_is_followed_also_if_it_is_replaced(twice: bool) -> None:
    model = classifier()
    head: Any = model.head
    changes: dict[str, Callable[[], Any]] = {
        "a new weight": lambda: setattr(head, "weight", quantised(1, twice=twice)),
        "numbers in place": lambda: whole_numbers(head.weight).neg_(),
        "another scale": lambda: setattr(head.weight, "scale", torch.tensor(3.0)),
        "a new weight again": lambda: setattr(head, "weight", quantised(2, twice=twice)),
        "its scale in place": lambda: head.weight.scale.mul_(2),
    }
    head.weight = quantised(0, twice=twice)
    method = AttnLRP(model)
    captured = method.capture(values(), 1)
    seen = [captured(values(1), 2)]
    for name, change in changes.items():
        change()
        assert not assert_never_stale(method, captured, values(1), 2), name
        found = captured(values(1), 2)
        assert not any(torch.equal(found, earlier) for earlier in seen), name
        seen.append(found)


class Factor(float):
    """A number that is more than its value."""

    more = 1.0


def factor(more: float) -> Factor:
    made = Factor(1.0)
    made.more = more
    return made


class Key:
    """All are equal, whatever they hold."""

    def __init__(self, more: float) -> None:
        self.more = more

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key)

    def __hash__(self) -> int:
        return 0


EQUAL: dict[str, Callable[[float], Any]] = {
    "a number": factor,
    "a tuple": lambda more: (factor(more),),
    "a frozen set": lambda more: frozenset({Key(more)}),
}


class TimesMore(Block):
    held: Any = None

    def forward(self, x: Tensor) -> Tensor:
        (held,) = self.held if isinstance(self.held, (tuple, frozenset)) else (self.held,)
        return super().forward(x * held.more)


@pytest.mark.parametrize("kind", EQUAL)
def test_what_is_equal_may_hold_something_else(kind: str) -> None:
    model = classifier(TimesMore, blocks=2)
    for block in model.blocks:
        block.held = EQUAL[kind](1.0)
    method = AttnLRP(model)
    captured = method.capture(values(), 1)
    captured(values(1), 2)
    model.blocks[1].held = EQUAL[kind](2.0)
    assert assert_never_stale(method, captured, values(1), 2)


def test_a_tuple_of_equal_numbers_is_the_same() -> None:
    class Sized(Block):
        def __init__(self) -> None:
            super().__init__()
            self.size = (1.0, (2, "a"))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.size[0])

    model = classifier(Sized)
    method = AttnLRP(model)
    captured = method.capture(values(), 1)
    model.blocks[0].size = (float("1"), (2, "a"))
    assert not assert_never_stale(method, captured, values(1), 2)
    model.blocks[0].size = (2.0, (2, "a"))
    assert assert_never_stale(method, captured, values(1), 2)


def test_a_weight_of_another_layout_is_refused() -> None:
    model = classifier()
    captured = AttnLRP(model).capture(values(), 1, recapture=False)
    model.blocks[0].offset = torch.zeros(16).to_sparse()
    with pytest.raises(CaptureMismatchError, match=r"offset is a Tensor torch\.sparse_coo"):
        captured(values(1), 2)


@pytest.mark.parametrize("lazily", [False, True])
def test_inputs_that_are_negated_where_they_are_read(lazily: bool) -> None:
    method, pair = AttnLRP(classifier()), torch.complex(values(1), values(2))
    captured = method.capture((pair.conj() if lazily else pair).imag, 1)
    assert pair.conj().imag.is_neg()
    for x in (pair.imag, pair.conj().imag):
        assert not assert_never_stale(method, captured, x, 2)
        # Compiled code sees what is in memory.
        (given, *_) = captured._given(x, 2, None, None).tensors
        assert torch.equal(torch.as_strided(given, x.shape, x.stride()), x)
        assert not given.is_neg()


@pytest.mark.slow
def test_weights_that_are_negated_where_they_are_read(tmp_path: Path) -> None:
    model, pair = classifier(), torch.complex(torch.ones(16), torch.ones(16))
    method = AttnLRP(model)
    model.blocks[0].offset = pair.imag
    captured = method.capture(values(), 1, recapture=True)
    for offset in (pair.conj().imag, pair.imag, pair.conj().imag):
        model.blocks[0].offset = offset
        assert not assert_never_stale(method, captured, values(1), 2)
    with pytest.raises(CaptureError, match=r"blocks\.0\.offset is conjugated or negated"):
        captured.compile()
    with pytest.raises(CaptureError, match=r"blocks\.0\.offset is conjugated or negated"):
        captured.save(tmp_path / "explain.pt2")
    captured = method.capture(values(), 1)
    model.blocks[0].offset = pair.imag
    with pytest.raises(CaptureMismatchError, match=r"was .*negated where it is read"):
        captured(values(1), 2)
