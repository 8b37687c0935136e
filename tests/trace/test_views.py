"""What a tensor holds, seen by autograd and by the tape: views, writes and custom functions."""

import random

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.errors import ExplanationError, InvalidInputError, UnseenOperationError
from tests.trace.derivatives import derivative_of_the_tape

METHODS = [
    ConservativeLRP,
    AttnLRP,
    GenericAttentionRelevance,
    lambda model: TransformerAttribution(model, propagate_to_input=True),
]
WIDTH = 8


class Changed(nn.Module):
    """A small Transformer that changes its tokens in some way first."""

    def __init__(self, change=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)
        self.change = change
        self.double().eval()

    def forward(self, x):
        return self.head(self.layer(self.change(self.embed(x)))[:, 0])


class Reverse(torch.autograd.Function):
    """Gradient reversal; subclasses return their input in another way."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class ReverseItself(Reverse):
    @staticmethod
    def forward(ctx, x):
        return x


class ReverseSlice(Reverse):
    @staticmethod
    def forward(ctx, x):
        return x[:]


class ReverseDirty(Reverse):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x


class ReverseWritten(Reverse):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(1)


class ReverseThroughData(Reverse):
    @staticmethod
    def forward(ctx, x):
        x.data.mul_(1)
        return x


class ReverseCopy(Reverse):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


FUNCTIONS = [
    Reverse,
    ReverseItself,
    ReverseSlice,
    ReverseDirty,
    ReverseWritten,
    ReverseThroughData,
    ReverseCopy,
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_custom_function_is_refused_whatever_it_returns(function, method, x):
    with pytest.raises(UnseenOperationError):
        method(Changed(function.apply)).attribute(x, target=1)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("of", [lambda x: x[:, 1:], lambda x: x.transpose(0, 1)])
def test_a_custom_function_of_a_view_is_refused(function, of, x):
    def change(x):
        function.apply(of(x))
        return x + 0 * of(x).sum() + function.apply(of(x)).sum()

    with pytest.raises(UnseenOperationError):
        ConservativeLRP(Changed(change)).attribute(x, target=1)


def test_custom_functions_within_hooks_are_refused(x):
    model = Changed()
    model.embed.register_forward_hook(lambda module, args, output: ReverseItself.apply(output))
    with pytest.raises(UnseenOperationError, match="ReverseItselfBackward"):
        GenericAttentionRelevance(model).attribute(x, target=1)


def test_a_custom_function_of_a_frozen_embedding_is_refused():
    class OnIds(Changed):
        def __init__(self):
            super().__init__(Reverse.apply)
            self.embed = nn.Embedding(10, WIDTH, dtype=torch.float64)

    model = OnIds().requires_grad_(False)
    with pytest.raises(UnseenOperationError, match="ReverseBackward"):
        ConservativeLRP(model).attribute(torch.randint(0, 10, (2, 5)), target=1)


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


@pytest.mark.parametrize("method", METHODS)
def test_hooks_on_modules_and_tensors_change_nothing(method, x):
    hooked = Changed(lambda x: x.transpose(0, 1).transpose(0, 1))
    expected = method(hooked).attribute(x, target=1)
    for module in hooked.modules():
        module.register_full_backward_pre_hook(lambda *args: None)
        module.register_full_backward_hook(lambda *args: None)
    hooked.embed.register_forward_hook(
        lambda module, args, output: output.register_hook(lambda gradient: None) and None
    )
    torch.testing.assert_close(method(hooked).attribute(x, target=1), expected)


@pytest.mark.parametrize(
    "register",
    [
        lambda module: module.register_full_backward_hook(lambda _, before, __: (-before[0],)),
        lambda module: module.register_full_backward_pre_hook(lambda _, after: (-after[0],)),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_hooks_that_change_gradients_do_not_run(method, register, x):
    """They are there for training: for gradient reversal, or clipping."""
    hooked = Changed(lambda x: x)
    expected = method(hooked).attribute(x, target=1)
    register(hooked.embed)
    torch.testing.assert_close(method(hooked).attribute(x, target=1), expected)
    training = x.clone().requires_grad_()
    (reversed_gradient,) = torch.autograd.grad(hooked(training)[:, 1].sum(), training)
    hooked.embed._backward_hooks.clear()
    hooked.embed._backward_pre_hooks.clear()
    (gradient,) = torch.autograd.grad(hooked(training)[:, 1].sum(), training)
    torch.testing.assert_close(reversed_gradient, -gradient)


@pytest.mark.parametrize("method", [ConservativeLRP, AttnLRP])
def test_a_hook_on_a_tensor_that_replaces_its_gradient_is_refused(method, x):
    def reverse(x):
        x.register_hook(lambda gradient: -gradient)
        return x

    with pytest.raises(UnseenOperationError, match="hook on a tensor that replaces its gradient"):
        method(Changed(reverse)).attribute(x, target=1)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.data.mul_(2),
        lambda x: x.data[0].zero_(),
        lambda x: x.detach().mul_(2),
        lambda x: torch.mul(x.detach(), 2, out=x.detach()),
    ],
)
def test_writing_where_autograd_does_not_see_it_is_refused(write, x):
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
def test_what_the_model_cuts_off_is_a_constant(cut, x):
    with torch.no_grad():
        constant = Changed().embed(x)
    cut_off, added = Changed(lambda x: x + cut(x)), Changed(lambda x: x + constant)
    for method in METHODS:
        torch.testing.assert_close(
            method(cut_off).attribute(x, target=1), method(added).attribute(x, target=1)
        )
    with pytest.raises(InvalidInputError, match="does not depend"):
        ConservativeLRP(Changed(cut)).attribute(x, target=1)


def test_constants_keep_the_numbers_that_they_had(x):
    """However they are written into after they were used."""

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


def test_the_tape_holds_what_autograd_differentiates():
    """Random programs are refused, or their tape has the derivative that autograd has."""
    compared = refused = 0
    for seed in range(400):
        function = program(seed)
        x = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        leaf = x.clone().requires_grad_()
        try:
            expected = torch.autograd.grad(function(leaf).sum(), leaf)[0]
        except (RuntimeError, IndexError):
            continue  # autograd refuses it too, as writing into what it needs
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
def test_nothing_is_left_behind_what_is_rotated(method, x):
    """As where rotary embeddings turn all features, and an empty rest is joined to them."""

    def rotated(x):
        turned, rest = x[..., :WIDTH], x[..., WIDTH:]
        return torch.cat([turned * 1.0, rest], -1)

    expected = method(Changed(lambda x: x * 1.0)).attribute(x, target=1)
    torch.testing.assert_close(method(Changed(rotated)).attribute(x, target=1), expected)
