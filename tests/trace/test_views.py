"""Views, writes and constants are traced as autograd differentiates them, or refused."""

import random

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import ConservativeLRP, GenericAttentionRelevance
from captum_transformer.errors import ExplanationError, InvalidInputError, UnseenOperationError
from tests.trace.changed_tokens import (
    METHODS,
    WIDTH,
    Changed,
    Reverse,
    ReverseDirty,
    ReverseItself,
    tokens,
)
from tests.trace.derivatives import derivative_of_the_tape


@pytest.fixture
def x() -> Tensor:
    return tokens()


@pytest.mark.parametrize("frozen", [False, True])
def test_looked_up_tokens_may_be_written_into(frozen):
    class Added(nn.Module):
        def __init__(self, *, in_place):
            super().__init__()
            self.rest, self.in_place = Changed(), in_place
            self.table = nn.Embedding(10, WIDTH, dtype=torch.float64)
            self.position = nn.Parameter(torch.randn(5, WIDTH, dtype=torch.float64))

        def forward(self, ids):
            x = self.table(ids)
            if self.in_place:
                x += self.position
            else:
                x = x + self.position
            return self.rest(x)

    written, plain = (Added(in_place=in_place) for in_place in (True, False))
    plain.load_state_dict(written.state_dict())
    if frozen:
        written.requires_grad_(False)
    ids = torch.randint(0, 10, (2, 5))
    for method in METHODS:
        torch.testing.assert_close(
            method(written).attribute(ids, target=1), method(plain).attribute(ids, target=1)
        )


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.data.mul_(2),
        lambda x: x.data[0].zero_(),
        lambda x: x.detach().mul_(2),
        lambda x: torch.mul(x.detach(), 2, out=x.detach()),
    ],
)
def test_writes_that_autograd_does_not_see_are_refused(write, x):
    def change(x):
        write(x)
        return x

    with pytest.raises(UnseenOperationError, match="written into"):
        ConservativeLRP(Changed(change)).attribute(x, target=1)


def test_writing_into_a_signal_without_gradients_is_refused(x):
    def change(x):
        with torch.no_grad():
            x.clamp_(min=0)
        return x

    with pytest.raises(UnseenOperationError, match=r"`clamp` writes into a tensor.*no_grad"):
        GenericAttentionRelevance(Changed(change)).attribute(x, target=1)


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.detach(),
        lambda x: x.data,
        lambda x: torch.no_grad()(lambda: x.transpose(0, 1))().transpose(0, 1),
        lambda x: torch.no_grad()(lambda: x * 1)(),
        lambda x: torch.from_numpy(x.detach().numpy()),
        lambda x: torch.zeros_like(x).copy_(x.detach()),
    ],
)
def test_detached_tensors_are_constants(cut, x):
    with torch.no_grad():
        constant = Changed().embed(x)
    cut_off, added = Changed(lambda x: x + cut(x)), Changed(lambda x: x + constant)
    for method in METHODS:
        torch.testing.assert_close(
            method(cut_off).attribute(x, target=1), method(added).attribute(x, target=1)
        )
    with pytest.raises(InvalidInputError, match="does not depend"):
        ConservativeLRP(Changed(cut)).attribute(x, target=1)


def test_constants_keep_their_values(x):
    """Constants may be written into after they were used."""

    def relu(c):
        nn.functional.relu(c, inplace=True)

    def out(c):
        torch.neg(c, out=c)

    for write in (relu, out, lambda c: c.data.zero_(), lambda c: c.flatten()[3:].zero_()):

        def change(x, write=write):
            torch.manual_seed(3)
            constant = torch.randn(5, WIDTH, dtype=x.dtype)
            x = x + constant
            write(constant)
            return x

        written, plain = Changed(change), Changed(lambda x: change(x, lambda c: None))
        for method in METHODS:
            torch.testing.assert_close(
                method(written).attribute(x, target=1), method(plain).attribute(x, target=1)
            )


VIEWS = [
    lambda x: x.transpose(0, 1),
    lambda x: x[1:],
    lambda x: x[:, ::2],
    lambda x: x.reshape(-1, 2),
    lambda x: x.unsqueeze(0).flatten(0, 1),
    lambda x: x.unbind(-1)[-1].unsqueeze(-1),
    lambda x: x.chunk(2, 0)[0],
    lambda x: x.expand(2, *x.shape)[1],
    lambda x: x.narrow(1, 0, 1),
]
WRITES = [
    lambda x, y: x.mul_(2),
    lambda x, y: x.add_(y.mean()),
    lambda x, y: x.copy_(y.sum() * torch.ones_like(x)),
    lambda x, y: x[:1].fill_(3.0),
    lambda x, y: x.__setitem__(0, y.sum()),
    lambda x, y: x.relu_(),
    lambda x, y: nn.functional.silu(x, inplace=True),
    lambda x, y: x.masked_fill_(torch.arange(x.shape[-1]) % 2 == 0, 1.0),
]
OTHERS = [
    lambda x: x * 3 + 1,
    lambda x: x.clone(),
    lambda x: x.detach() * x,
    lambda x: x.data + x,
    lambda x: torch.cat([x, x]),
    Reverse.apply,
    ReverseItself.apply,
    ReverseDirty.apply,
]


def program(seed):
    """A random program of views, writes and other functions, which ends in one number."""
    draw = random.Random(seed)
    steps = [(draw.choice("vvvwwo"), draw.random(), draw.random(), draw.random()) for _ in range(8)]

    weight = torch.eye(4, dtype=torch.float64) * 2

    def run(x):
        # The output of a linear layer in three dimensions is a view of a tensor without a name.
        start = nn.functional.linear(x[None], weight, weight[0])
        tensors = [start[0], start.transpose(1, 2)[0], x * 1]
        for kind, which, first, second in steps:
            one, other = (tensors[int(n * len(tensors))] for n in (first, second))
            chosen = {"v": VIEWS, "w": WRITES, "o": OTHERS}[kind]
            function = chosen[int(which * len(chosen))]
            if kind == "w":
                function(one, other)
            else:
                tensors.append(function(one))
        return torch.stack([tensor.sin().sum() for tensor in tensors]).sum().reshape(1, 1)

    return run


def test_the_tape_has_the_derivative_of_autograd():
    """Random programs are refused, or their tape has the derivative that autograd has."""
    compared = refused = 0
    for seed in range(400):
        function = program(seed)
        x = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        leaf = x.clone().requires_grad_()
        try:
            expected = torch.autograd.grad(function(leaf).sum(), leaf)[0]
        except (RuntimeError, IndexError):
            continue  # autograd refuses it as well: a tensor that it needs was written into
        try:
            found, by_autograd = derivative_of_the_tape(lambda x, run=function: run(x[0]), x)
        except ExplanationError:
            refused += 1
            continue
        compared += 1
        for result in (found, by_autograd):
            torch.testing.assert_close(result, expected, msg=lambda m, n=seed: f"{n}: {m}")
    assert compared > 60
    assert refused > 20


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_tensor_may_be_concatenated(method, x):
    """Rotary embeddings of all features concatenate an empty tensor of the others."""

    def rotated(x):
        turned, rest = x[..., :WIDTH], x[..., WIDTH:]
        return torch.cat([turned * 1.0, rest], -1)

    expected = method(Changed(lambda x: x * 1.0)).attribute(x, target=1)
    torch.testing.assert_close(method(Changed(rotated)).attribute(x, target=1), expected)
