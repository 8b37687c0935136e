"""Which operand of a sum or product comes first makes no difference."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_transformer.errors import NoAttentionError
from tests.attr.generators import bart, detr, t5
from tests.attr.subjects import (
    EACH_WAY,
    METHODS,
    SUBJECTS,
    Subject,
    as_tuple,
    assert_close,
    attributed,
    drawn,
    subject,
)
from tests.attr.two_modalities import lxmert

_COMMUTE = {
    torch.add,
    torch.mul,
    torch.maximum,
    torch.minimum,
    *(getattr(Tensor, name) for name in ("add", "__add__", "__radd__", "mul", "__mul__")),
}


_MULTIPLY = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}


class Swapped(TorchFunctionMode):
    """Swaps the tensors of operations that commute, and those of matrix products by transposing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not kwargs and all(isinstance(each, Tensor) for each in args):
            if func in _COMMUTE:
                return func(*args[::-1])
            if func in _MULTIPLY and all(each.ndim > 2 for each in args):
                return torch.matmul(args[1].mT, args[0].mT).mT.contiguous()
        return func(*args, **(kwargs or {}))


@contextmanager
def swapped(model: nn.Module) -> Iterator[None]:
    forward = model.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with Swapped():
            return forward(*args, **kwargs)

    model.forward = run
    yield
    model.forward = forward


@pytest.mark.parametrize("method", ["ConservativeLRP", "GenericAttentionRelevance"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_of_a_models_operations(name: str, method: str) -> None:
    given = subject(name)
    with swapped(given.model):
        found = as_tuple(given.attribute(METHODS[method]))
    assert_close(found, attributed(name, method), 1e-9)


# Queries and keys are other tokens.
CROSS_ATTENTION: dict[str, Callable[[str], Subject]] = {
    "BART": bart,
    "T5": t5,
    "DETR": detr,
    "LXMERT": lxmert,
}


@pytest.mark.parametrize("method", ["TransformerAttribution", "GenericAttentionRelevance"])
@pytest.mark.parametrize("name", CROSS_ATTENTION)
def test_of_cross_attention(name: str, method: str) -> None:
    given = CROSS_ATTENTION[name]("eager")
    expected = given.attribute(METHODS[method])
    with swapped(given.model):
        found = given.attribute(METHODS[method])
    assert found.keys() == expected.keys()
    for key, relevance in found.items():
        assert_close(relevance, expected[key], 1e-6)


class Gated(nn.Module):
    """Attention whose heads are weighted by a softmax over heads."""

    def __init__(self, multiplied: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.gate, self.head = nn.Linear(8, 24), nn.Linear(8, 2), nn.Linear(8, 3)
        self.multiplied = multiplied

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        gate = self.gate(x).mT.softmax(1).unsqueeze(-1)
        weights = self.multiplied((query @ key.mT).softmax(-1), gate)
        return self.head((x + (weights @ value).transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("method", EACH_WAY)
def test_of_weights_and_what_heads_are_weighted_by(method: str) -> None:
    x = drawn(2, 5, 8)
    first, last = (
        METHODS[method](Gated(multiplied).double()).attribute(x, target=[0, 2])
        for multiplied in (
            lambda weights, gate: weights * gate,
            lambda weights, gate: gate * weights,
        )
    )
    assert_close(last, first, 1e-12)


@pytest.mark.parametrize("multiplied", [lambda p, gate: p * gate, lambda p, gate: gate * p])
@pytest.mark.parametrize("method", ["ConservativeLRP", "LibraGrad"])
def test_of_two_softmaxes_where_nothing_says_which_is_over_features(
    method: str, multiplied: Callable[[Tensor, Tensor], Tensor]
) -> None:
    wq, wk, wv, wg, head = (drawn(8, width, seed=width) for width in (8, 7, 8, 2, 3))
    wk = torch.cat([wk, wk[:, :1]], 1)

    def model(x: Tensor) -> Tensor:
        query, key, value = ((x @ w).unflatten(-1, (2, 4)).transpose(1, 2) for w in (wq, wk, wv))
        gate = (x @ wg).mT.softmax(1).unsqueeze(-1)
        weights = multiplied((query @ key.mT).softmax(-1), gate)
        return (x + (weights @ value).transpose(1, 2).flatten(2)).mean(1) @ head

    with pytest.raises(NoAttentionError, match="Which of their factors are the weights of tokens"):
        METHODS[method](model).attribute(drawn(2, 5, 8), target=[0, 2])
